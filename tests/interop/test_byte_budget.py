"""A byte budget instead of a type: types by measured sensitivity, against the fixed mixes of the same bytes."""

import json

import gguf_table
import numpy as np
import pytest

from conftest import ROOT

# Measured on one text, compared on another.
MEASURED, HELD_OUT = "tinystories/train_v1_first2MiB.txt", "tinystories/valid_v1_nosep.txt"


@pytest.fixture(scope="module")
def sensitivity(run_nibble, stories260k, shared, tmp_path_factory):
    path = tmp_path_factory.mktemp("budget") / "sensitivity.json"
    result = run_nibble("sensitivity", stories260k, shared / "text" / MEASURED, "-o", path, "--chunks", 4)
    assert result.returncode == 0, result.stderr
    assert "--target-bpw" in result.stdout
    return path


def tensor_bytes(run_nibble, path):
    return json.loads(run_nibble("inspect", path, "--json").stdout)["tensor_bytes"]


# Q8_0 is the largest of the types that were measured: no choice is left there.
@pytest.mark.parametrize("mix", ["Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_budget_beats_the_fixed_mix_of_the_same_bytes(run_nibble, stories260k, shared, sensitivity, mix, tmp_path):
    fixed, chosen = tmp_path / "fixed.gguf", tmp_path / "chosen.gguf"
    result = run_nibble("quantize", stories260k, fixed, mix)
    assert result.returncode == 0, result.stderr
    size = tensor_bytes(run_nibble, fixed)
    result = run_nibble("quantize", stories260k, chosen, "--target-size", size, "--sensitivity", sensitivity)
    assert result.returncode == 0, result.stderr
    assert tensor_bytes(run_nibble, chosen) <= size
    result = run_nibble("compare", fixed, chosen, "--base", stories260k, "--text", shared / "text" / HELD_OUT,
                        "--ctx", 256, "--chunks", 20, "--json")
    assert result.returncode == 0, result.stderr
    difference = json.loads(result.stdout)["differences"][0]
    # chosen against fixed, paired over tokens; 3 standard errors below
    assert difference["mean_kld"] + 3 * difference["mean_kld_err"] < 0, difference


def test_the_types_can_be_written_and_read_by_llama_quantize(run_nibble, stories260k, sensitivity, run_llama, tmp_path):
    chosen, types = tmp_path / "chosen.gguf", tmp_path / "types.txt"
    result = run_nibble("quantize", stories260k, chosen, "--target-bpw", 6, "--sensitivity", sensitivity,
                        "--write-types", types, "--method", "ggml")
    assert result.returncode == 0, result.stderr
    theirs = tmp_path / "theirs.gguf"
    run_llama("llama-quantize", "--tensor-type-file", types, stories260k, theirs, "Q8_0", "1", until="total time")
    ours, other = (json.loads(run_nibble("inspect", path, "--json").stdout)["tensors"] for path in (chosen, theirs))
    assert {t["name"]: t["type"] for t in ours} == {t["name"]: t["type"] for t in other}
    assert len({t["type"] for t in ours}) > 3  # float32, float16 and a true mix


def test_flags_that_choose_no_type_hold_for_a_budget(run_nibble, stories260k, sensitivity, tmp_path):
    out = tmp_path / "out.gguf"
    result = run_nibble("quantize", stories260k, out, "--target-bpw", 6, "--sensitivity", sensitivity,
                        "--prune-layers", "1,3", "--override-kv", "general.name=str:another")
    assert result.returncode == 0, result.stderr
    metadata, tensors = gguf_table.read(out)
    assert metadata["llama.block_count"][1] == 3 and metadata["general.name"][1] == b"another"
    weights = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    assert sum(len(tensor.data) for tensor in tensors.values()) <= 6 * weights / 8


def test_a_quantized_source_needs_leave(run_nibble, stories260k, sensitivity, tmp_path):
    source, out = tmp_path / "q8_0.gguf", tmp_path / "out.gguf"
    assert run_nibble("quantize", stories260k, source, "Q8_0").returncode == 0
    command = ["quantize", source, out, "--target-bpw", 6, "--sensitivity", sensitivity]
    refused = run_nibble(*command)
    assert refused.returncode == 2 and "--allow-requantize" in refused.stderr
    assert not out.exists()
    assert run_nibble(*command, "--allow-requantize").returncode == 0


def test_training_and_its_baselines_follow_the_types_that_were_written(run_nibble, stories260k, shared, sensitivity,
                                                                       tmp_path):
    types, run = tmp_path / "types.txt", tmp_path / "run"
    result = run_nibble("quantize", stories260k, tmp_path / "chosen.gguf", "--target-bpw", 6, "--sensitivity",
                        sensitivity, "--write-types", types)
    assert result.returncode == 0, result.stderr
    wanted = json.loads(run_nibble("quantize", stories260k, "Q8_0", "--tensor-type-file", types, "--dry-run",
                                   "--json").stdout)
    config = ROOT / "configs" / "stories260k_q4_0.yaml"
    settings = ["quant.type=Q8_0", f"quant.tensor_types={types}", f"output={run}", "max_tokens=10240",
                "baselines=[ggml]", "compare.chunks=2", "compare.types=[]", "prompts=[]"]
    result = run_nibble("run", config, *(each for setting in settings for each in ("--set", setting)), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert json.loads((run / "plan.json").read_text())["tensors"] == wanted["tensors"]
    for name in ("trained", "ggml"):
        path = next(run.glob(f"*-Q8_0-{name}.gguf"))
        assert tensor_bytes(run_nibble, path) == tensor_bytes(run_nibble, tmp_path / "chosen.gguf"), name
    assert run_nibble("verify", next(run.glob("*-trained.gguf")), "--against", run).returncode == 0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["held_out_loss"] < steps[0]["held_out_loss"]


def test_a_measurement_goes_on(run_nibble, stories260k, shared, sensitivity, tmp_path):
    whole = json.loads(sensitivity.read_text())
    part = dict(whole, tensors=whole["tensors"][:5])
    path = tmp_path / "part.json"
    path.write_text(json.dumps(part))
    arguments = ("sensitivity", stories260k, shared / "text" / MEASURED, "-o", path)
    result = run_nibble(*arguments, "--chunks", 4)
    assert result.returncode == 0, result.stderr
    assert json.loads(path.read_text())["tensors"] == whole["tensors"]
    result = run_nibble(*arguments, "--chunks", 3, "--types", "Q8_0")
    assert "they are replaced" in result.stderr
    assert json.loads(path.read_text())["tensors"] != whole["tensors"]


@pytest.mark.parametrize("arguments, said", [
    (["--target-bpw", "4"], "nibble sensitivity"),
    (["--target-bpw", "0.5", "--sensitivity", "FILE"], "too small"),
    (["--target-bpw", "-1", "--sensitivity", "FILE"], "--target-bpw"),
    (["--target-bpw", "3,5", "--sensitivity", "FILE"], "--target-bpw: wants a number, found '3,5'"),
    (["--target-bpw", "4", "--sensitivity", "HUGE"], "out of range"),
    (["--target-size", "4Q", "--sensitivity", "FILE"], "--target-size"),
    (["Q4_0", "--target-bpw", "4", "--sensitivity", "FILE"], "TYPE 'Q4_0'"),
    (["--target-bpw", "4", "--target-size", "1M", "--sensitivity", "FILE"], "two budgets"),
    (["--target-bpw", "4", "--sensitivity", "MODEL"], "no JSON"),
    (["--target-bpw", "4", "--sensitivity", "FILE", "--pure"], "--pure and a budget"),
    (["--target-bpw", "4", "--sensitivity", "FILE", "--tensor-type", "attn_v=q8_0"], "--tensor-type and a budget"),
    (["Q4_0", "--sensitivity", "FILE"], "--sensitivity needs a budget"),
    (["Q4_0", "--write-types", "types.txt"], "--write-types needs a budget"),
    (["--target-bpw", "4", "--sensitivity", "FILE", "--prune-layers", "9"], "no layer 9"),
])
def test_one_line_says_what_is_wrong(run_nibble, stories260k, sensitivity, arguments, said, tmp_path):
    out = tmp_path / "out.gguf"
    huge = tmp_path / "huge.json"
    huge.write_text('{"tensors": 1e999}')
    named = {"FILE": sensitivity, "MODEL": stories260k, "HUGE": huge}
    result = run_nibble("quantize", stories260k, out, *(named.get(each, each) for each in arguments))
    assert result.returncode in (1, 2)
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert not out.exists()
