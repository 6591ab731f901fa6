"""Exported files against the real llama.cpp, gguf and safetensors: they load, they generate, and what gguf decodes is,
bit for bit, what the run was evaluated with."""

import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import gguf_table

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "stories260k_q4_0.yaml"
# stories260K's rows of 64 are no multiple of a super-block, but of every block of 32 and 64.
# The gguf package does not know Q2_0: gguf_table reads what it cannot.
GGUF_TYPES = ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "F16", "BF16"]
TYPES = [*GGUF_TYPES, "Q2_0"]


@pytest.fixture(scope="module")
def exported(run_nibble, stories260k, tmp_path_factory):
    """(run folder, exported file) of a few steps of training in a type."""
    made = {}

    def make(type_name):
        if type_name not in made:
            folder = tmp_path_factory.mktemp("export") / type_name
            result = run_nibble(
                "run", CONFIG, "--set", f"output={folder}", "--set", f"quant.type={type_name}",
                "--set", "max_tokens=4096", "--set", "baselines=[ggml]", "--set", "compare.types=[]",
                "--set", "compare.chunks=2", "--set", "prompts=[]", cwd=ROOT,
            )
            assert result.returncode == 0, result.stderr
            out = folder / "out.gguf"
            result = run_nibble("export", folder, out, cwd=ROOT)
            assert result.returncode == 0, result.stderr
            made[type_name] = folder, out
        return made[type_name]

    return make


def content_hash(values):
    """nibble's hash of a tensor's float32 weights, written from its description in quant/fake/quantizer.h."""
    mask, factor = (1 << 64) - 1, 0xFF51AFD7ED558CCD

    def mix(value, word):
        value = ((value ^ word) * factor) & mask
        return value ^ (value >> 32)

    flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    total = len(flat)
    for start in range(0, len(flat), 1 << 16):
        piece = flat[start : start + (1 << 16)]
        padded = np.concatenate([piece, np.zeros(len(piece) % 2, "<f4")])
        partial = len(piece)
        for word in padded.view("<u8").tolist():
            partial = mix(partial, word)
        total = mix(total, partial)
    return total


def shipped_checkpoint(folder):
    best = folder / "checkpoints" / "best.safetensors"
    return best if best.exists() else folder / "checkpoints" / "last.safetensors"


def scalar(reader, key):
    return reader.fields[key].contents()


@pytest.mark.parametrize("type_name", GGUF_TYPES)
def test_gguf_decodes_what_was_evaluated(exported, type_name):
    import gguf

    _, path = exported(type_name)
    reader = gguf.GGUFReader(path)
    hashes = scalar(reader, "nibble.tensor_hashes")
    assert len(hashes) == len(reader.tensors)
    for tensor, wanted in zip(reader.tensors, hashes):
        assert content_hash(gguf.dequantize(tensor.data, tensor.tensor_type)) == wanted, tensor.name


def test_the_hash_sees_one_bit():
    values = np.arange(70000, dtype=np.float32)
    before = content_hash(values)
    values.view(np.uint32)[69999] ^= 1
    assert content_hash(values) != before


@pytest.mark.parametrize("type_name", TYPES)
def test_the_plan_is_kept(exported, type_name):
    folder, path = exported(type_name)
    plan = json.loads((folder / "plan.json").read_text())
    found = {name: tensor.type for name, tensor in gguf_table.read(path)[1].items()}
    assert found == {entry["name"]: entry["target"] for entry in plan["tensors"]}


def test_metadata_is_the_sources_and_says_where_it_came_from(exported, stories260k):
    import gguf

    folder, path = exported("Q4_0")
    source, reader = gguf.GGUFReader(stories260k), gguf.GGUFReader(path)
    own = ("GGUF.", "nibble.", "general.file_type", "general.quantization_version")
    for key, field in source.fields.items():
        if not key.startswith(own):
            assert reader.fields[key].types == field.types, key
            assert reader.fields[key].contents() == field.contents(), key
    assert set(key for key in reader.fields if not key.startswith(own)) <= set(source.fields)
    assert scalar(reader, "general.file_type") == 2
    assert scalar(reader, "general.quantization_version") == 2
    assert scalar(reader, "nibble.method") == "qat"
    sha256 = lambda file: hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()
    assert scalar(reader, "nibble.source_hash") == sha256(stories260k)
    assert scalar(reader, "nibble.config_hash") == sha256(folder / "config.yaml")


@pytest.mark.parametrize("type_name", TYPES)
def test_norms_stay_float32_bit_for_bit(exported, stories260k, type_name):
    from safetensors.numpy import load_file

    folder, path = exported(type_name)
    trained = load_file(shipped_checkpoint(folder))
    source = gguf_table.read(stories260k)[1]
    norms = {name: tensor for name, tensor in gguf_table.read(path)[1].items() if "norm" in name}
    assert norms
    for name, tensor in norms.items():
        assert tensor.type == "F32"
        wanted = trained[name].tobytes() if name in trained else source[name].data
        assert tensor.data == wanted, name


def test_a_changed_bit_is_found_and_named(exported, run_nibble, tmp_path):
    import gguf

    folder, path = exported("Q4_0")
    assert run_nibble("verify", path, "--against", folder).returncode == 0
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.2.ffn_up.weight")
    changed = bytearray(path.read_bytes())
    # Rows of 64 are two blocks of 18 bytes; byte 9 of row 5's second block: columns 32 + 7 (low nibble) and 32 + 23.
    changed[tensor.data_offset + 5 * 36 + 18 + 9] ^= 0x01
    odd = tmp_path / "changed.gguf"
    odd.write_bytes(changed)
    result = run_nibble("verify", odd, "--against", folder, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    wrong = [t for t in report["tensors"] if t["problem"]]
    assert [t["name"] for t in wrong] == ["blk.2.ffn_up.weight"]
    assert "row 5, column 39: wanted" in wrong[0]["problem"]
    alone = run_nibble("verify", odd)
    assert alone.returncode == 1 and "another hash" in alone.stdout


@pytest.fixture
def export_copy(exported, run_nibble, tmp_path):
    """export_copy(write) -> the line that a copy of the run, whose checkpoint write(path) makes, is refused with."""

    def run(write):
        folder, _ = exported("Q4_0")
        copy = tmp_path / "run"
        (copy / "checkpoints").mkdir(parents=True, exist_ok=True)
        (copy / "config.yaml").write_text((folder / "config.yaml").read_text())
        write(copy / "checkpoints" / "last.safetensors")
        result = run_nibble("export", copy, tmp_path / "out.gguf", cwd=ROOT)
        assert result.returncode == 1 and len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert not list(tmp_path.glob("out.gguf*"))
        return result.stderr

    return run


def test_a_changed_checkpoint_is_refused(exported, export_copy):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(shipped_checkpoint(exported("Q4_0")[0]), "np") as file:
        tensors = {name: file.get_tensor(name).copy() for name in file.keys()}
        metadata = file.metadata()
    tensors["blk.1.attn_v.weight:scale_ratios"].reshape(-1)[11] *= np.float32(1.01)
    write = lambda path: save_file(tensors, path, metadata=metadata)
    assert "last.safetensors: " in export_copy(write)
    # Where no checksum stands in the way (layout 1 had none), the hash of the weights tells.
    del tensors["checksum"]
    metadata["nibble.format"] = "1"
    assert "tensor 'blk.1.attn_v.weight'" in export_copy(write)


def test_a_damaged_byte_of_the_checkpoint_is_noticed(exported, export_copy):
    whole = shipped_checkpoint(exported("Q4_0")[0]).read_bytes()
    for at in [0, 9, 1000, *range(5000, len(whole), len(whole) // 20), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        assert "last.safetensors: " in export_copy(lambda path: path.write_bytes(damaged)), at


GENERATE = """
import sys
import llama_cpp

model = llama_cpp.Llama(model_path=sys.argv[1], n_ctx=64, n_threads=2, verbose=False)
answer = model("Once upon a time", max_tokens=16, temperature=0.0)
print(answer["choices"][0]["text"])
"""


@pytest.mark.parametrize("type_name", TYPES)
def test_llama_cpp_loads_and_generates(exported, type_name):
    _, path = exported(type_name)
    # In a child: a file that ggml does not like can end the process.
    result = subprocess.run([sys.executable, "-c", GENERATE, str(path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.strip()) > 0


@pytest.mark.parametrize("type_name", ["Q4_0", "Q2_0"])
def test_llama_completion_generates(exported, llama_generates, type_name):
    llama_generates(exported(type_name)[1], "Once upon a time")


def test_parts_have_the_weights_of_the_whole(exported, run_nibble, llama_generates, tmp_path):
    folder, whole = exported("Q4_0")
    result = run_nibble("export", folder, tmp_path / "out.gguf", "--split-max-size", "100K", "--json")
    assert result.returncode == 0, result.stderr
    first = pathlib.Path(json.loads(result.stdout)["path"])
    assert first.name == "out-00001-of-00003.gguf" and not (tmp_path / "out.gguf").exists()
    assert json.loads(result.stdout)["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.gguf"))
    assert run_nibble("verify", first, "--against", folder).returncode == 0
    assert json.loads(run_nibble("diff", first, whole, "--full", "--json").stdout)["overall"]["relative_error"] == 0
    llama_generates(first, "Once upon a time")


def test_inspect_agrees_with_gguf(exported, run_nibble):
    import gguf

    _, path = exported("Q5_1")
    report = json.loads(run_nibble("inspect", path, "--json").stdout)
    reader = gguf.GGUFReader(path)
    assert report["bytes"] == path.stat().st_size
    assert len(report["metadata"]) == len([k for k in reader.fields if not k.startswith("GGUF.")])
    wanted = [(t.name, t.tensor_type.name, list(map(int, t.shape)), int(t.n_bytes), int(t.data_offset)) for t in reader.tensors]
    assert [(t["name"], t["type"], t["shape"], t["bytes"], t["offset"]) for t in report["tensors"]] == wanted
    assert sum(t["share"] for t in report["types"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "arguments, status, wanted",
    [
        (["export"], 2, "no RUN_DIR given"),
        (["export", "nowhere", "out.gguf"], 1, "nowhere: no such run folder"),
        (["export", "nowhere", "out.gguf", "--checkpoint", "lest"], 2, "wanted best or last"),
        (["verify", "nowhere.gguf"], 1, "nowhere.gguf: cannot open"),
        (["verify", "x.gguf", "--checkpoint", "best"], 2, "give --against RUN_DIR too"),
        (["inspect", "nowhere.gguf", "--jsn"], 2, "jsn"),
    ],
)
def test_mistakes_are_one_line(run_nibble, tmp_path, arguments, status, wanted):
    result = run_nibble(*arguments, cwd=tmp_path)
    assert result.returncode == status
    assert wanted in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
