"""nibble quantize against the real llama-quantize: with --method ggml every tensor's type and bytes are the same."""

import json
import subprocess

import gguf
import gguf_table
import numpy as np
import pytest
from generated_llama import write_llama, write_skeleton

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_0"]
MIXES = ["Q1_0", "TQ1_0", "TQ2_0", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M",
         "Q5_K_S", "Q5_K_M", "Q6_K", "MXFP4_MOE"]
FLAGS = [
    ["--pure"],
    ["--leave-output-tensor"],
    ["--token-embedding-type", "q8_0"],
    ["--output-tensor-type", "q5_1"],
    ["--tensor-type", "attn_v=q8_0", "--tensor-type", "ffn_(up|gate)=q5_0"],
    ["--tensor-type", "ffn_down.{1,6}t=q5_1"],
    ["--prune-layers", "3,1"],
    [
        "--override-kv", "general.name=str:another, with a comma",
        "--override-kv", "llama.context_length=int:512",
        "--override-kv", "llama.rope.freq_base=float:5000.3",
        "--override-kv", "a.new.key=bool:true",
    ],
]


@pytest.fixture(scope="module")
def llama_quantize(llama_bin, llama_env):
    def run(*arguments):
        return subprocess.run([llama_bin("llama-quantize"), *map(str, arguments)], env=llama_env, capture_output=True)

    return run


SHAPE = {"width": 256, "wide": 768, "layers": 2, "heads": 4, "context": 256}


@pytest.fixture(scope="module")
def wide_tied(stories260k, tmp_path_factory):
    """Rows that 256 divides: the output, here the embedding too, becomes Q6_K."""
    path = tmp_path_factory.mktemp("wide") / "tied.gguf"
    write_llama(path, stories260k, **SHAPE, dtype=np.float32)
    return path


@pytest.fixture(scope="module")
def wide_separate(stories260k, tmp_path_factory):
    """As wide_tied, with an output of its own: at Q2_0 the embedding becomes Q4_K."""
    path = tmp_path_factory.mktemp("wide") / "separate.gguf"
    write_llama(path, stories260k, **SHAPE, dtype=np.float16, tied=False)
    return path


@pytest.fixture(scope="module")
def deep(stories260k, tmp_path_factory):
    """Layers enough for the mixes to tell early, middle and late ones apart; 4 heads share each K and V."""
    path = tmp_path_factory.mktemp("deep") / "deep.gguf"
    write_llama(path, stories260k, **{**SHAPE, "wide": 256, "layers": 9}, gqa=4, dtype=np.float16, tied=False)
    return path


@pytest.fixture(params=["stories260k", "smollm2_f32", "wide_tied", "wide_separate"])
def model(request):
    return request.getfixturevalue(request.param)


def assert_same_file(ours, theirs):
    our_metadata, our_tensors = gguf_table.read(ours)
    their_metadata, their_tensors = gguf_table.read(theirs)
    assert sorted(our_tensors) == sorted(their_tensors)
    different = [name for name in our_tensors if our_tensors[name] != their_tensors[name]]
    assert different == []
    added = {key: our_metadata.pop(key)[1] for key in ("nibble.version", "nibble.method")}
    assert added["nibble.method"] == b"ggml"
    # Compared as text, where a NaN equals itself, in the order of the file.
    assert repr(our_metadata) == repr(their_metadata)


def assert_same_part(ours, theirs):
    """Of a part that is not the first: split.* is all its metadata."""
    assert gguf_table.read(ours) == gguf_table.read(theirs)


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_equals_llama_quantize(model, type_name, run_nibble, llama_quantize, tmp_path):
    assert llama_quantize(model, tmp_path / "theirs.gguf", type_name).returncode == 0
    ours = run_nibble("quantize", "--method", "ggml", model, tmp_path / "ours.gguf", type_name)
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("type_name", MIXES)
@pytest.mark.parametrize("source", ["stories260k", "wide_tied", "deep"])
def test_every_mix_equals_llama_quantize(source, type_name, request, run_nibble, llama_quantize, tmp_path):
    source = request.getfixturevalue(source)
    theirs = llama_quantize(source, tmp_path / "theirs.gguf", type_name)
    ours = run_nibble("quantize", "--method", "ggml", source, tmp_path / "ours.gguf", type_name)
    # Refused by both: Q2_K_S without an imatrix, Q1_0 for rows that 128 does not divide.
    assert (theirs.returncode != 0) == (ours.returncode != 0), ours.stderr
    if theirs.returncode != 0:
        assert not (tmp_path / "ours.gguf").exists()
        return
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: flags[0][2:])
def test_flags_equal_llama_quantize(stories260k, flags, run_nibble, llama_quantize, tmp_path):
    assert llama_quantize(*flags, stories260k, tmp_path / "theirs.gguf", "Q4_0").returncode == 0
    ours = run_nibble("quantize", *flags, "--method", "ggml", stories260k, tmp_path / "ours.gguf", "Q4_0")
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_a_file_of_tensor_types_equals_llama_quantize(stories260k, run_nibble, llama_quantize, tmp_path):
    types = tmp_path / "types.txt"
    types.write_text("blk\\.[02]\\.attn_v=q8_0   ffn_up=F16\nATTN_Q=q5_1\n")
    arguments = ["--tensor-type", "attn_v=q4_1", "--tensor-type-file", types, stories260k]
    assert llama_quantize(*arguments, tmp_path / "theirs.gguf", "Q4_0").returncode == 0
    ours = run_nibble("quantize", "--method", "ggml", *arguments, tmp_path / "ours.gguf", "Q4_0")
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    types.write_text("attn_v=q4_1 attn_q")
    refused = run_nibble("quantize", "--tensor-type-file", types, stories260k, tmp_path / "no.gguf", "Q4_0")
    assert refused.returncode == 2 and "wants NAME=TYPE, found 'attn_q'" in refused.stderr


def test_a_copy_equals_llama_quantize(smollm2_q4_1, run_nibble, llama_quantize, tmp_path):
    assert llama_quantize(smollm2_q4_1, tmp_path / "theirs.gguf", "COPY").returncode == 0
    ours = run_nibble("quantize", "--method", "ggml", smollm2_q4_1, tmp_path / "ours.gguf", "copy")
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("word", ["Q4_K", "15", "q8_0"])
def test_without_a_name_the_file_is_named_after_its_type(stories260k, word, run_nibble, llama_quantize, tmp_path):
    folders = {name: tmp_path / name for name in ("ours", "theirs")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "in.gguf").write_bytes(stories260k.read_bytes())
    assert llama_quantize(folders["theirs"] / "in.gguf", word, "1").returncode == 0
    ours = run_nibble("quantize", "--method", "ggml", folders["ours"] / "in.gguf", word, "1")
    assert ours.returncode == 0, ours.stderr
    written = {name: sorted(path.name for path in folder.iterdir()) for name, folder in folders.items()}
    assert written["ours"] == written["theirs"]
    (name,) = set(written["ours"]) - {"in.gguf"}
    assert_same_file(folders["ours"] / name, folders["theirs"] / name)


@pytest.mark.parametrize("split", [[], ["--split-max-tensors", "30"]], ids=["one", "parts"])
def test_kept_parts_equal_llama_quantize(split, run_nibble, llama_quantize, llama_bin, llama_env, tmp_path):
    """The last layer comes first in the file, and here the mixes count in the file's order."""
    source = tmp_path / "whole.gguf"
    write_skeleton(source, layers=9, backwards=True)
    if split:
        subprocess.run(
            [llama_bin("llama-gguf-split"), *split, source, tmp_path / "part"],
            env=llama_env, check=True, capture_output=True)
        source = tmp_path / "part-00001-of-00003.gguf"
    assert llama_quantize("--keep-split", source, tmp_path / "theirs.gguf", "Q4_K_M").returncode == 0
    ours = run_nibble("quantize", "--keep-split", "--method", "ggml", source, tmp_path / "ours.gguf", "Q4_K_M")
    assert ours.returncode == 0, ours.stderr
    names = sorted(path.name for path in tmp_path.glob("theirs-*"))
    assert len(names) == (3 if split else 1)
    assert sorted(path.name for path in tmp_path.glob("ours*")) == [name.replace("theirs", "ours") for name in names]
    for name in names:
        part = tmp_path / name.replace("theirs", "ours")
        first = name.startswith("theirs-00001")
        (assert_same_file if first else assert_same_part)(part, tmp_path / name)
    onto_itself = run_nibble("quantize", "--keep-split", source, tmp_path / "part.gguf", "Q4_K_M")
    assert not split or (onto_itself.returncode == 2 and "same file" in onto_itself.stderr)


def test_a_quantized_source_needs_leave(smollm2_q4_1, run_nibble, llama_quantize, tmp_path):
    refused = run_nibble("quantize", smollm2_q4_1, tmp_path / "ours.gguf", "Q4_0")
    assert refused.returncode == 2 and "--allow-requantize" in refused.stderr
    assert not list(tmp_path.iterdir())
    assert llama_quantize("--allow-requantize", smollm2_q4_1, tmp_path / "theirs.gguf", "Q4_0").returncode == 0
    allowed = run_nibble(
        "quantize", "--allow-requantize", "--method", "ggml", smollm2_q4_1, tmp_path / "ours.gguf", "Q4_0"
    )
    assert allowed.returncode == 0, allowed.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("method", ["ggml", "rtn", "search"])
def test_q4_1_of_what_was_q4_1_loses_nothing(smollm2_q4_1, smollm2_f32, method, run_nibble, tmp_path):
    """All 272 tensors, the Q8_0 embedding included, get back the very blocks they were decoded from."""
    result = run_nibble("quantize", "--method", method, smollm2_f32, tmp_path / "again.gguf", "Q4_1")
    assert result.returncode == 0, result.stderr
    _, source = gguf_table.read(smollm2_q4_1)
    _, again = gguf_table.read(tmp_path / "again.gguf")
    assert {tensor.type for tensor in source.values()} == {"Q4_1", "Q8_0", "F32"}
    assert [name for name in source if again[name] != source[name]] == []


def decoded(tensor):
    number = gguf.GGMLQuantizationType[tensor.type]
    return gguf.quants.dequantize(np.frombuffer(tensor.data, np.uint8), number).ravel().astype(np.float64)


# The gguf package decodes all of these; Q2_0 it does not know yet.
@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_search_errs_no_more_than_ggml_in_any_tensor(stories260k, type_name, run_nibble, tmp_path):
    errors = {}
    _, source = gguf_table.read(stories260k)
    for method in ("ggml", "search"):
        path = tmp_path / f"{method}.gguf"
        assert run_nibble("quantize", "--method", method, stories260k, path, type_name).returncode == 0
        _, tensors = gguf_table.read(path)
        errors[method] = {
            name: np.square(decoded(tensor) - np.frombuffer(source[name].data, np.float32)).sum()
            for name, tensor in tensors.items() if tensor.type == type_name
        }
    assert len(errors["ggml"]) >= 31
    # 1e-6: the search adds up its squares in float32.
    assert [name for name, error in errors["search"].items() if error > errors["ggml"][name] * (1 + 1e-6)] == []
    assert sum(errors["search"].values()) < sum(errors["ggml"].values())


def test_json_tells_what_was_written(stories260k, run_nibble, tmp_path):
    out = tmp_path / "out.gguf"
    result = run_nibble("quantize", "--json", stories260k, out, "q4_0", "2")
    report = json.loads(result.stdout)
    assert (report["name"], report["type"], report["method"]) == (str(out), "Q4_0", "search")
    _, tensors = gguf_table.read(out)
    assert report["bytes"] == sum(len(tensor.data) for tensor in tensors.values())
    assert report["tensors"] == len(tensors) == 48
    assert report["bpw"] == pytest.approx(8 * report["bytes"] / report["weights"])
    assert "--method ggml" in result.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(stories260k, run_nibble, tmp_path):
    result = run_nibble("quantize", "--dry-run", "--json", stories260k, tmp_path / "out.gguf", "Q4_0")
    plan = json.loads(result.stdout)
    assert (plan["type"], plan["file_type"], len(plan["tensors"])) == ("Q4_0", 2, 48)
    assert not list(tmp_path.iterdir())
