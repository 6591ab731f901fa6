"""nibble export --hf against the folders that models came of, and transformers on what it writes."""

import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from test_convert import (  # noqa: F401
    CTX, convert, converted, make_model, reference_dtype, text_of, torch_env, transformers_log_probs,
)
from test_model import TOLERANCE, largest_difference
from test_packed import checkpoint, decoded, gpt_oss, source  # noqa: F401

# Biases with queries and keys in llama's order; tied, with scaling; norms of 1 + w; halves turned; parts in one matrix;
# stacks of experts; value heads in another order, and decays; parts of several matrices in one; columns for rows.
NAMES = ["llama with biases", "llama3", "gemma3", "qwen2", "smollm3", "phi3", "granite", "gemma2", "mixtral", "qwen3moe",
         "qwen35", "qwen35moe", "qwen3next", "gpt-oss"]


def adds_one(name, tensor):
    """Of what GGUF has 1 + w."""
    is_hybrid = name in ("qwen35", "qwen35moe", "qwen3next")
    of_delta_net = "linear_attn" in tensor or "ssm" in tensor
    return "norm" in tensor and (name == "gemma3" or is_hybrid and not of_delta_net)


def export(run_nibble, path, out, like, *arguments):
    result = run_nibble("export", path, "--hf", out, "--like", like, *arguments)
    assert result.returncode == 0, result.stderr
    return out


def tensors_of(folder):
    """As float32, through torch-free eyes: bfloat16 is the upper half of a float32."""
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        assert header.pop("__metadata__") == {"format": "pt"}
        for name, entry in header.items():
            raw = body[slice(*entry["data_offsets"])]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(raw, {"F32": np.float32, "F16": np.float16}[entry["dtype"]]).astype(np.float32)
            tensors[name] = values.reshape(entry["shape"])
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_an_unquantized_model_comes_back(run_nibble, converted, name, tmp_path):  # noqa: F811
    model = converted(name)
    out = export(run_nibble, model.path, tmp_path / "out", model.folder, "--max-shard-size", "4MB")
    ours, theirs = tensors_of(out), tensors_of(model.folder)
    theirs = {tensor: weights for tensor, weights in theirs.items() if not tensor.startswith("mtp.")}  # left out by convert
    assert ours.keys() == theirs.keys()
    for tensor in theirs:
        if tensor.endswith(".A_log"):  # the logarithm of its exponential, in float32
            assert np.allclose(ours[tensor], theirs[tensor], rtol=0, atol=1e-6), tensor
            continue
        # 1 + w - 1 in float32.
        rounded = (theirs[tensor] + np.float32(1)) - np.float32(1) if adds_one(name, tensor) else theirs[tensor]
        assert np.array_equal(ours[tensor], rounded), tensor
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == theirs.keys()
    assert index["metadata"]["total_size"] == sum(4 * weights.size for weights in theirs.values())
    for file in set(index["weight_map"].values()):
        with safe_open(out / file, "np") as shard:
            assert all(index["weight_map"][key] == file for key in shard.keys())
            assert len(list(shard.keys())) == 1 or (out / file).stat().st_size < 4.1e6
    copied = {path.name for path in model.folder.iterdir() if "safetensors" not in path.name}
    assert {path.name for path in out.iterdir() if "safetensors" not in path.name} == copied
    assert not list(tmp_path.glob("*.tmp.*"))


@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_what_the_quantized_file_does(
    run_nibble, torch_env, converted, shared, name, tmp_path  # noqa: F811
):
    model = converted(name)
    path = tmp_path / "q4.gguf"
    assert run_nibble("quantize", "-q", model.path, path, "Q4_0").returncode == 0
    out = export(run_nibble, path, tmp_path / "out", model.folder)
    again = decoded(convert(run_nibble, out, tmp_path / "again.gguf", "--outtype", "f32"))
    for tensor, weights in decoded(path).items():
        if adds_one(name, tensor):
            weights = weights - np.float32(1) + np.float32(1)
        if tensor.endswith(".ssm_a"):
            assert np.allclose(again[tensor], weights, rtol=1e-6, atol=0), tensor
            continue
        assert np.array_equal(again[tensor], weights), tensor

    ties = (lambda tokens: model.near_ties(tokens, out)) if model.has_experts else None
    difference = largest_difference(
        run_nibble, path, text_of(shared), tmp_path, chunks=2, ctx=CTX, bos=model.bos, excluded=ties,
        log_probs=lambda tokens: transformers_log_probs(torch_env, out, tokens, tmp_path, reference_dtype(name)))
    assert difference < TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrower_types(run_nibble, source, dtype, tmp_path):  # noqa: F811
    path = convert(run_nibble, source("float16"), tmp_path / "f32.gguf", "--outtype", "f32")
    out = export(run_nibble, path, tmp_path / "out", source("float16"), "--dtype", dtype)
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    for tensor, weights in tensors_of(source("float16")).items():
        if dtype == "bfloat16":
            bits = weights.view(np.uint32).astype(np.uint64)
            weights = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
        assert np.array_equal(tensors_of(out)[tensor], weights), tensor


def test_of_a_packed_checkpoint(run_nibble, checkpoint, tmp_path):  # noqa: F811
    packed, unpacked = checkpoint("gptq")
    path = convert(run_nibble, packed, tmp_path / "packed.gguf")
    out = export(run_nibble, path, tmp_path / "out", packed)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    ours = tensors_of(out)
    for tensor, weights in tensors_of(unpacked).items():
        assert np.array_equal(ours[tensor], weights), tensor


def test_of_stacks_in_mxfp4(run_nibble, gpt_oss, tmp_path):  # noqa: F811
    packed, unpacked = gpt_oss
    out = export(run_nibble, convert(run_nibble, packed, tmp_path / "packed.gguf"), tmp_path / "out", packed)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    ours, theirs = tensors_of(out), tensors_of(unpacked)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[tensor], weights) for tensor, weights in theirs.items())


def test_of_a_training_run(run_nibble, source, shared, tmp_path):  # noqa: F811
    text, config = tmp_path / "text.txt", tmp_path / "run.yaml"
    text.write_text(text_of(shared).read_text()[:20_000])
    config.write_text(f"""model: {source("float16")}
output: {tmp_path / "run"}
quant: {{type: Q4_0, initial: rtn}}
data: {{files: ["{text}"], sequence_length: 64}}
loss: {{kind: kl}}
batch_tokens: 64
max_tokens: 128
""")
    assert run_nibble("train", config).returncode == 0
    result = run_nibble("export", tmp_path / "run", tmp_path / "out.gguf", "--hf", tmp_path / "out", "--like", source("float16"))
    assert result.returncode == 0, result.stderr
    again = decoded(convert(run_nibble, tmp_path / "out", tmp_path / "again.gguf", "--outtype", "f32"))
    for tensor, weights in decoded(tmp_path / "out.gguf").items():
        assert np.array_equal(again[tensor], weights), tensor

    result = run_nibble("export", tmp_path / "run", tmp_path / "masters.gguf", "--masters", "--hf", tmp_path / "masters",
                        "--like", source("float16"))
    assert result.returncode == 0, result.stderr
    again = decoded(convert(run_nibble, tmp_path / "masters", tmp_path / "masters_again.gguf", "--outtype", "f32"))
    with safe_open(tmp_path / "run" / "checkpoints" / "best.safetensors", "np") as run:
        for tensor, weights in again.items():
            assert np.array_equal(weights.reshape(-1), run.get_tensor(tensor).reshape(-1)), tensor
    shipped = decoded(tmp_path / "out.gguf")
    assert any(not np.array_equal(weights, shipped[tensor]) for tensor, weights in again.items())


def test_refusals(run_nibble, source, tmp_path):  # noqa: F811
    path = convert(run_nibble, source("float16"), tmp_path / "model.gguf")
    like = tmp_path / "like"
    like.mkdir()
    config = json.loads((source("float16") / "config.json").read_text())

    def complaint(changes, *arguments):
        (like / "config.json").write_text(json.dumps(config | changes))
        result = run_nibble("export", path, "--hf", tmp_path / "out", "--like", like, *arguments)
        assert result.returncode != 0
        assert sorted(os.listdir(tmp_path)) == ["like", "model.gguf"]
        return result.stderr

    assert "'llama.embedding_length' is another than config.json says" in complaint({"hidden_size": 256})
    assert "'llama.rope.freq_base' is another" in complaint({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}})
    assert "is a llama, config.json a Qwen2ForCausalLM" in complaint({"architectures": ["Qwen2ForCausalLM"]})
    assert "tensor 'output.weight' is missing" in complaint({"tie_word_embeddings": False})
    assert "attn_q.bias' is missing" in complaint({"attention_bias": True})
    scaling = {"rope_theta": 100000, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
    assert "'rope_freqs.weight' is not what" in complaint({"rope_parameters": scaling})
    assert "--dtype wants" in complaint({}, "--dtype", "int8")
    assert "--max-shard-size wants" in complaint({}, "--max-shard-size", "5 apples")
    for arguments, wanted in [([], "--like"), (["--like", tmp_path / "nothing"], "has no config.json")]:
        result = run_nibble("export", path, "--hf", tmp_path / "out", *arguments)
        assert result.returncode != 0 and wanted in result.stderr
    (like / "config.json").write_text(json.dumps(config))
    result = run_nibble("export", path, "--hf", like, "--like", like)
    assert result.returncode == 1 and f"{like}: is there already" in result.stderr
