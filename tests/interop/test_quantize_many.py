"""nibble quantize --types: several types in one pass, each file as it is made alone, all of them or none."""

import json
import signal
import subprocess
import time

import gguf_table
import numpy as np
import pytest
from generated_llama import write_llama
from test_imatrix import write_imatrix
from test_quantize import MIXES, TYPES

FEW = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "IQ4_XS", "Q8_0", "F16", "COPY"]
# All that can be encoded: Q2_K_S wants an imatrix.
EVERY = [name for name in TYPES + MIXES if name != "Q2_K_S"]


@pytest.fixture(scope="module")
def model(stories260k, tmp_path_factory):
    """Rows that 256 divides, layers enough for the mixes to tell early, middle and late ones apart."""
    path = tmp_path_factory.mktemp("many") / "deep-F16.gguf"
    write_llama(path, stories260k, width=256, wide=512, layers=9, heads=4, context=256, dtype=np.float16, tied=False)
    return path


@pytest.fixture(scope="module")
def imatrix(model):
    random = np.random.default_rng(3)
    entries = {
        name: (np.square(random.standard_normal((1, tensor.shape[0]), dtype=np.float32)), np.ones((1, 1), np.float32))
        for name, tensor in gguf_table.read(model)[1].items() if name.startswith("blk.") and len(tensor.shape) == 2
    }
    del entries["blk.3.attn_k.weight"]
    path = model.with_name("imatrix.gguf")
    write_imatrix(path, entries)
    return path


def assert_as_alone(run_nibble, model, types, flags, folder):
    result = run_nibble("quantize", *flags, model, folder / "out", "--types", ",".join(types))
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (folder / "out").iterdir()} == {f"deep-{name}.gguf" for name in types}
    for name in types:
        alone = run_nibble("quantize", *flags, model, folder / "alone.gguf", name)
        assert alone.returncode == 0, alone.stderr
        assert (folder / "out" / f"deep-{name}.gguf").read_bytes() == (folder / "alone.gguf").read_bytes(), name
    return result


@pytest.mark.parametrize("method", ["ggml", "search"])
@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "imatrix"])
def test_every_file_is_what_it_is_alone(model, imatrix, method, weighed, run_nibble, tmp_path):
    flags = ["--method", method, *(["--imatrix", imatrix] if weighed else [])]
    result = assert_as_alone(run_nibble, model, FEW, flags, tmp_path)
    assert len(result.stdout.splitlines()) == len(FEW)
    # What holds for every type is said once.
    assert result.stderr.count("so no importance, for blk.3.attn_k.weight") == weighed
    assert result.stderr.count("--method ggml writes those") == (method == "search")


@pytest.mark.parametrize("flags", [
    ["--pure"],
    ["--tensor-type", "attn_v=q8_0", "--output-tensor-type", "q5_1"],
    ["--prune-layers", "3,1", "--override-kv", "general.name=str:another"],
], ids=lambda flags: flags[0][2:])
def test_flags_hold_for_every_file(model, flags, run_nibble, tmp_path):
    assert_as_alone(run_nibble, model, ["Q4_0", "Q5_K_M"], ["--method", "ggml", *flags], tmp_path)


def test_json_is_a_list(model, run_nibble, tmp_path):
    result = run_nibble("quantize", "--json", "-q", model, tmp_path, "--types", "q4_0,15", "2")
    reports = json.loads(result.stdout)
    assert [report["type"] for report in reports] == ["Q4_0", "Q4_K"]  # 15 by its shortest name, as alone
    for report in reports:
        assert report["name"] == str(tmp_path / f"deep-{report['type']}.gguf")
        assert report["bytes"] == sum(len(tensor.data) for tensor in gguf_table.read(report["name"])[1].values())
    (only,) = json.loads(run_nibble("quantize", "--json", "-q", model, tmp_path, "--types", "F16").stdout)
    assert only["converted"] == 0


def test_dry_run_prints_every_plan_and_writes_nothing(model, run_nibble, tmp_path):
    command = ["quantize", "--dry-run", model, tmp_path / "out", "--types", "Q4_0,IQ2_XS"]
    plans = json.loads(run_nibble(*command, "--json").stdout)
    assert [plan["type"] for plan in plans] == ["Q4_0", "IQ2_XS"]
    result = run_nibble(*command)
    assert f"{tmp_path}/out/deep-IQ2_XS.gguf:" in result.stdout.splitlines()
    assert "this plan is refused: IQ2_XS: tensor" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("types, flags, status, said", [
    ("Q4_0,Q4_O", [], 2, "did you mean 'Q4_0'"),
    ("Q4_0,,Q8_0", [], 2, "unknown type ''"),
    ("Q4_0,Q8_0,q4_0", [], 2, "'q4_0' is in the list already, as 'Q4_0'"),
    ("Q4_K,Q4_K_M", [], 2, "'Q4_K_M' is in the list already, as 'Q4_K'"),
    ("Q4_0", ["--keep-split"], 2, "--keep-split and --types"),
    ("Q4_0", ["--target-bpw", "4"], 2, "--types and a budget"),
    ("Q4_0,Q8_0", ["Q5_0"], 2, "TYPE 'Q5_0' and --types"),
    ("Q4_0", ["2", "more"], 2, "one too many"),
    ("Q4_0,IQ2_XS,Q8_0", [], 1, "IQ2_XS: tensor"),
    ("Q4_0,Q2_K_S", [], 1, "garbage without an importance matrix"),
])
def test_a_refusal_is_one_line_before_anything_is_written(model, types, flags, status, said, run_nibble, tmp_path):
    result = run_nibble("quantize", "-q", model, tmp_path / "out", *flags, "--types", types)
    assert result.returncode == status and said in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_folder_must_be_named_and_be_one(model, run_nibble, tmp_path):
    result = run_nibble("quantize", "-q", model, "--types", "Q4_0")
    assert result.returncode == 2 and "no OUT_DIR" in result.stderr
    (tmp_path / "file").write_bytes(b"old")
    result = run_nibble("quantize", "-q", model, tmp_path / "file", "--types", "Q4_0")
    assert result.returncode == 1 and "cannot make the folder" in result.stderr
    assert (tmp_path / "file").read_bytes() == b"old"


def test_the_source_is_never_overwritten(model, run_nibble, tmp_path):
    source = tmp_path / "deep-Q4_0.gguf"
    source.write_bytes(model.read_bytes())
    result = run_nibble("quantize", "-q", source, tmp_path, "--types", "Q8_0,Q4_0")
    assert result.returncode == 2 and "same file" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    assert source.read_bytes() == model.read_bytes()


def test_a_bad_number_leaves_the_old_files(model, run_nibble, tmp_path):
    bad = tmp_path / "deep.gguf"
    data = bytearray(model.read_bytes())
    data[-2:] = np.float16("nan").tobytes()  # in the last tensor
    bad.write_bytes(data)
    old = tmp_path / "out" / "deep-Q8_0.gguf"
    old.parent.mkdir()
    old.write_bytes(b"old")
    result = run_nibble("quantize", "-q", bad, old.parent, "--types", "Q4_0,Q8_0")
    assert result.returncode == 1 and "holds a NaN" in result.stderr
    assert [(path.name, path.read_bytes()) for path in old.parent.iterdir()] == [(old.name, b"old")]


def test_a_signal_leaves_nothing_of_any_file(model, nibble, tmp_path):
    process = subprocess.Popen([nibble, "quantize", "-q", model, tmp_path, "--types", ",".join(EVERY), "1"])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.tmp.*"))) < len(EVERY):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert not list(tmp_path.iterdir())
