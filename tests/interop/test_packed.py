"""nibble convert on checkpoints that are quantized already: against what compressed-tensors unpacks, what llama.cpp's
converter unpacks, transformers on the unpacked weights, and llama.cpp on the file."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import gguf
import gguf_table
import numpy as np
import pytest
from gguf.quants import dequantize
from packed_checkpoints import write_checkpoint, write_gpt_oss
from published_configs import SMALL_GPT_OSS, SMALL_QWEN3_NEXT, SMALL_QWEN35
from safetensors.numpy import load_file, save_file
from small_models import SMOLLM2_TOKENS, tokenizer_files
from test_convert import (  # noqa: F401
    CTX, Converted, contents_of, converter, convert, lay_folder, run_child, run_converter, text_of, torch_env,
)
from test_model import TOLERANCE, largest_difference, llama_log_probs

CHILD = pathlib.Path(__file__).with_name("compressed_tensors_child.py")
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}

# name: (what packs it, its settings, GGUF's type)
CHECKPOINTS = {
    "gptq": ("gptq", {"group_size": 32}, "Q4_0"),
    "gptq channels": ("gptq", {"group_size": -1}, "Q4_0"),
    "gptq v2": ("gptq", {"group_size": 128, "version": 2}, "Q4_0"),
    "gptq asymmetric": ("gptq", {"group_size": 64, "symmetric": False}, "Q4_1"),
    "gptq v2 asymmetric": ("gptq", {"group_size": 32, "symmetric": False, "version": 2}, "Q4_1"),
    "awq": ("awq", {"group_size": 128, "symmetric": False}, "Q4_1"),
    "awq symmetric": ("awq", {"group_size": 64}, "Q4_0"),
    "compressed-tensors": ("compressed-tensors", INT4, "Q4_0"),
    "compressed-tensors channels": (
        "compressed-tensors", {key: INT4[key] for key in ("num_bits", "type", "symmetric")} | {"strategy": "channel"}, "Q4_0",
    ),
    "compressed-tensors asymmetric": ("compressed-tensors", INT4 | {"symmetric": False, "group_size": 32}, "Q4_1"),
    "compressed-tensors mxfp4": ("compressed-tensors", INT4 | {"type": "float", "group_size": 32}, "MXFP4"),
}
KINDS = {"F32": np.float32, "F16": np.float16}
# What llama.cpp's converter unpacks too.
THEIRS = ["gptq v2 asymmetric", "gptq asymmetric", "compressed-tensors asymmetric"]


def byte_tokenizer():
    """The smallest with which every text can be read, so that files are small."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = sorted(ByteLevel.alphabet()) + ["th"]
    return {
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": ["t h"]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }


@pytest.fixture(scope="session")
def source(shared, torch_env, tmp_path_factory):  # noqa: F811
    """A llama whose queries and keys have several heads, so that an order of rows that is not llama's is noticed."""
    made = {}

    def make(dtype):
        if dtype not in made:
            folder = lay_folder(tmp_path_factory.mktemp(dtype) / "llama", shared, "SmolLM2-135M", "smollm2",
                                {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 257,
                                 "bos_token_id": None, "eos_token_id": None})
            (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
            run_child(torch_env, "make", folder, 1, dtype, "50GB")
            made[dtype] = folder
        return made[dtype]

    return make


@pytest.fixture(scope="session")
def mixture(shared, torch_env, tmp_path_factory):  # noqa: F811
    """Six experts in each layer."""
    folder = lay_folder(
        tmp_path_factory.mktemp("mixture") / "qwen3moe", shared, "Qwen3-30B-A3B", "smollm2",
        {"head_dim": 32, "moe_intermediate_size": 64, "num_experts": 6, "num_experts_per_tok": 2, "vocab_size": 257,
         "bos_token_id": None, "eos_token_id": None})
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    run_child(torch_env, "make", folder, 1, "float16", "50GB")
    return folder


@pytest.fixture(scope="session")
def checkpoint(source, torch_env, tmp_path_factory):  # noqa: F811
    """(packed folder, unpacked folder) of a name in CHECKPOINTS."""
    made = {}

    def make(name):
        if name not in made:
            method, settings, _ = CHECKPOINTS[name]
            out = tmp_path_factory.mktemp("packed")
            if method == "compressed-tensors":
                if not importlib.util.find_spec("compressed_tensors"):
                    pytest.skip("no compressed-tensors: run scripts/peers")
                result = subprocess.run([sys.executable, CHILD, source("bfloat16"), out, json.dumps(settings)],
                                        env=torch_env, capture_output=True, text=True)
                assert result.returncode == 0, result.stderr[-2000:]
            else:
                write_checkpoint(source("float16"), out, method, **settings)
            made[name] = out / "packed", out / "unpacked"
        return made[name]

    return make


def decoded(path):
    return {
        name: dequantize(np.frombuffer(tensor.data, KINDS.get(tensor.type, np.uint8)), gguf.GGMLQuantizationType[tensor.type])
        for name, tensor in gguf_table.read(path)[1].items()
    }


def types(path):
    return {name: tensor.type for name, tensor in gguf_table.read(path)[1].items()}


def float32_of(run_nibble, folder, tmp_path):
    return decoded(convert(run_nibble, folder, tmp_path / "unpacked.gguf", "--outtype", "f32"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_codes_are_the_checkpoints(run_nibble, checkpoint, name, tmp_path):
    packed, unpacked = checkpoint(name)
    wanted_type = CHECKPOINTS[name][2]
    result = run_nibble("convert", packed, tmp_path / "packed.gguf", "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["type"] == wanted_type and said["packed_matrices"] == 14
    _, file_type = gguf_table.read(tmp_path / "packed.gguf")[0]["general.file_type"]
    assert gguf.LlamaFileType(file_type).name.startswith(f"MOSTLY_{wanted_type}")
    ours, wanted = decoded(tmp_path / "packed.gguf"), float32_of(run_nibble, unpacked, tmp_path)
    kinds = types(tmp_path / "packed.gguf")
    assert ours.keys() == wanted.keys()
    largest = 0
    for tensor, weights in wanted.items():
        is_packed = tensor.startswith("blk.") and "norm" not in tensor
        assert kinds[tensor] == wanted_type if is_packed else kinds[tensor] in ("F16", "BF16", "F32"), tensor
        if is_packed and wanted_type == "Q4_1":
            largest = max(largest, np.abs(ours[tensor].astype(np.float64) - weights).max())
            # A zero of at most 15 steps, rounded to float16's 11 bits; gguf's decoding adds float32's own rounding.
            steps = np.abs(np.diff(np.sort(weights.reshape(-1, 32))))
            assert np.abs(ours[tensor] - weights).max() <= 15 * steps.max() * 2.0**-11
        else:
            assert np.array_equal(ours[tensor], weights), tensor
    assert said["largest_rounding"] == pytest.approx(largest, rel=1e-6)
    assert said["largest_rounding_in_steps"] <= 15 * 2.0**-11 + 1e-6


@pytest.mark.parametrize("name", [name for name, case in CHECKPOINTS.items() if case[2] == "Q4_1"])
def test_of_q4_1_codes_and_scales_are_exact(run_nibble, checkpoint, name, tmp_path):
    packed, unpacked = checkpoint(name)
    path = convert(run_nibble, packed, tmp_path / "packed.gguf")
    wanted = float32_of(run_nibble, unpacked, tmp_path)
    for name, tensor in gguf_table.read(path)[1].items():
        if tensor.type != "Q4_1":
            continue
        blocks = np.frombuffer(tensor.data, np.uint8).reshape(-1, 20)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
        zeros = codes - wanted[name].reshape(-1, 32) / scale
        assert np.abs(zeros - np.round(zeros[:, :1])).max() < 1e-3


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_decoded_weights_on_request(run_nibble, checkpoint, name, tmp_path):
    packed, unpacked = checkpoint(name)
    path = convert(run_nibble, packed, tmp_path / "f32.gguf", "--outtype", "f32")
    assert set(types(path).values()) == {"F32"}
    ours = decoded(path)
    for tensor, weights in float32_of(run_nibble, unpacked, tmp_path).items():
        assert np.array_equal(ours[tensor], weights), tensor


@pytest.mark.parametrize("name", THEIRS)
def test_llama_cpps_converter_decodes_the_same(
    run_nibble, torch_env, converter, checkpoint, shared, name, tmp_path  # noqa: F811
):
    """With a tokenizer that it recognizes, and as many embeddings."""
    packed, _ = checkpoint(name)
    folder = pathlib.Path(shutil.copytree(packed, tmp_path / "packed"))
    shutil.copy(shared / "hf" / tokenizer_files("smollm2")["tokenizer.json"], folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **SMOLLM2_TOKENS}))
    enlarge_embeddings(folder / "model.safetensors")
    run_converter(converter, torch_env, folder, tmp_path / "theirs.gguf", "f32")
    ours = decoded(convert(run_nibble, folder, tmp_path / "ours.gguf", "--outtype", "f32"))
    theirs = decoded(tmp_path / "theirs.gguf")
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        assert np.array_equal(ours[tensor], theirs[tensor]), tensor


def enlarge_embeddings(path):
    """The file's header and bytes, rewritten by hand as numpy has no bfloat16."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    entry = header["model.embed_tokens.weight"]
    entry["shape"][0] = SMOLLM2_TOKENS["vocab_size"]
    size = 2 * entry["shape"][0] * entry["shape"][1]
    begin, end = entry["data_offsets"]
    for other in header.values():
        if "data_offsets" in other and other["data_offsets"][0] >= end:
            other["data_offsets"] = [offset + size - (end - begin) for offset in other["data_offsets"]]
    entry["data_offsets"] = [begin, begin + size]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body[:begin] + bytes(size) + body[end:])


@pytest.mark.parametrize("name", ["gptq asymmetric", "awq", "compressed-tensors", "compressed-tensors mxfp4"])
def test_log_probs_are_those_of_the_unpacked_model(run_nibble, torch_env, checkpoint, shared, name, tmp_path):  # noqa: F811
    packed, unpacked = checkpoint(name)
    path = convert(run_nibble, packed, tmp_path / "packed.gguf")

    def of_transformers(tokens):
        np.save(tmp_path / "tokens.npy", tokens)
        run_child(torch_env, "log_probs", unpacked, tmp_path / "tokens.npy", tmp_path / "theirs.npy")
        return np.load(tmp_path / "theirs.npy")

    def difference(log_probs):
        return largest_difference(run_nibble, path, text_of(shared), tmp_path, chunks=2, ctx=CTX, bos=None, log_probs=log_probs)

    # Q4_1's minimums are rounded: some 1e-4 of a weight, at logits that spread over tens.
    exact = CHECKPOINTS[name][2] != "Q4_1"
    assert difference(of_transformers) < (TOLERANCE if exact else 0.1)
    # llama.cpp rounds activations to 8 bits before it multiplies by these types.
    assert difference(lambda tokens: llama_log_probs(path, tokens, tmp_path)) < 2


def test_act_order_has_no_blocks_but_decodes(run_nibble, torch_env, converter, source, tmp_path):  # noqa: F811
    write_checkpoint(source("float16"), tmp_path / "made", "gptq", act_order=True)
    packed, unpacked = tmp_path / "made" / "packed", tmp_path / "made" / "unpacked"
    result = run_nibble("convert", packed, tmp_path / "packed.gguf")
    assert result.returncode == 1
    assert "have scales of their own (g_idx)" in result.stderr and "--outtype f16" in result.stderr
    assert not (tmp_path / "packed.gguf").exists()
    ours = decoded(convert(run_nibble, packed, tmp_path / "f32.gguf", "--outtype", "f32"))
    for tensor, weights in float32_of(run_nibble, unpacked, tmp_path).items():
        assert np.array_equal(ours[tensor], weights), tensor


def test_gptqs_first_programs_put_settings_and_biases_elsewhere(run_nibble, checkpoint, tmp_path):
    packed, _ = checkpoint("gptq")
    folder = pathlib.Path(shutil.copytree(packed, tmp_path / "old"))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False, "sym": True}))
    tensors = load_file(folder / "model.safetensors")
    bias = "model.layers.0.mlp.up_proj.bias"
    save_file(tensors | {bias: np.zeros(256, np.float16)}, folder / "model.safetensors")
    same = convert(run_nibble, folder, tmp_path / "old.gguf")
    assert {name: t.tobytes() for name, t in decoded(same).items()} == {
        name: t.tobytes() for name, t in decoded(convert(run_nibble, packed, tmp_path / "new.gguf")).items()}
    save_file(tensors | {bias: np.ones(256, np.float16)}, folder / "model.safetensors")
    result = run_nibble("convert", folder, tmp_path / "not.gguf")
    assert result.returncode == 1 and f"'{bias}'" in result.stderr and "has no such tensor" in result.stderr


EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_experts_keep_their_codes(run_nibble, mixture, method, tmp_path):
    """Each is a packed matrix of its own; one zero that is not 8 makes Q4_1 of its stack, and changes no other expert."""
    write_checkpoint(mixture, tmp_path / "made", method, group_size=64, asymmetric=[EXPERT])
    result = run_nibble("convert", tmp_path / "made" / "packed", tmp_path / "packed.gguf", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["packed_matrices"] == 2 * (4 + 3 * 6)
    kinds = types(tmp_path / "packed.gguf")
    stack = "blk.0.ffn_up_exps.weight"
    for tensor, kind in kinds.items():
        packed = tensor.startswith("blk.") and "norm" not in tensor and "gate_inp" not in tensor
        assert kind == ("Q4_1" if tensor == stack else "Q4_0" if packed else "F16" if "blk." not in tensor and
                        "norm" not in tensor else "F32"), tensor
    ours, wanted = decoded(tmp_path / "packed.gguf"), float32_of(run_nibble, tmp_path / "made" / "unpacked", tmp_path)
    for tensor, weights in wanted.items():
        if tensor == stack:
            of_expert = slice(3 * weights.size // 6, 4 * weights.size // 6)
            assert np.abs(ours[tensor] - weights)[of_expert].max() < 1e-3 < np.abs(weights[of_expert]).max()
            ours[tensor][of_expert] = weights[of_expert]
        assert np.array_equal(ours[tensor], weights), tensor
    plain = decoded(convert(run_nibble, tmp_path / "made" / "packed", tmp_path / "f32.gguf", "--outtype", "f32"))
    assert all(np.array_equal(plain[tensor], weights) for tensor, weights in wanted.items())


def test_an_expert_that_is_not_packed_is_named(run_nibble, mixture, tmp_path):
    write_checkpoint(mixture, tmp_path / "made", "gptq")
    packed, unpacked = (tmp_path / "made" / kind / "model.safetensors" for kind in ("packed", "unpacked"))
    parts = {name: data for name, data in load_file(packed).items() if not name.startswith(EXPERT.removesuffix("weight"))}
    save_file(parts | {EXPERT: load_file(unpacked)[EXPERT]}, packed)
    result = run_nibble("convert", packed.parent, tmp_path / "packed.gguf")
    assert result.returncode == 1 and f"'{EXPERT}': is not packed, other experts of" in result.stderr
    ours = decoded(convert(run_nibble, packed.parent, tmp_path / "f32.gguf", "--outtype", "f32"))
    for tensor, weights in float32_of(run_nibble, unpacked.parent, tmp_path).items():
        assert np.array_equal(ours[tensor], weights), tensor
    del parts[EXPERT.replace(".3.", ".4.").replace("weight", "qweight")]
    save_file(parts | {EXPERT: load_file(unpacked)[EXPERT]}, packed)
    result = run_nibble("convert", packed.parent, tmp_path / "packed.gguf")
    assert result.returncode == 1 and "there is no '" + EXPERT.replace(".3.", ".4.").replace("weight", "qweight") in result.stderr


@pytest.mark.parametrize("name", ["Qwen3.5", "Qwen3-Next"])
def test_codes_follow_rows_and_columns_to_other_places(run_nibble, shared, torch_env, name, tmp_path):  # noqa: F811
    """Value heads of 32 elements in another order, and two matrices made of the rows of one."""
    small = {"Qwen3.5": SMALL_QWEN35, "Qwen3-Next": SMALL_QWEN3_NEXT}[name]
    heads = {"linear_key_head_dim": 32, "linear_value_head_dim": 32, "num_hidden_layers": 4, "vocab_size": 257,
             "bos_token_id": None, "eos_token_id": None}
    folder = lay_folder(tmp_path / "model", shared, name, "smollm2", {**small, **heads})
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    run_child(torch_env, "make", folder, 1, "float16", "50GB")
    write_checkpoint(folder, tmp_path / "made", "gptq", group_size=32, symmetric=False)
    result = run_nibble("convert", tmp_path / "made" / "packed", tmp_path / "packed.gguf", "--json")
    assert result.returncode == 0, result.stderr
    kinds, ours = types(tmp_path / "packed.gguf"), decoded(tmp_path / "packed.gguf")
    wanted = float32_of(run_nibble, tmp_path / "made" / "unpacked", tmp_path)
    for tensor in ("blk.0.attn_qkv.weight", "blk.0.attn_gate.weight", "blk.0.ssm_out.weight", "blk.3.attn_q.weight"):
        assert kinds[tensor] == "Q4_1", tensor
    for tensor, weights in wanted.items():
        # Minimums are rounded to float16; nothing else is.
        assert np.abs(ours[tensor] - weights).max() <= (1e-3 if kinds[tensor] == "Q4_1" else 0), tensor


@pytest.fixture(scope="session")
def gpt_oss(shared, torch_env, tmp_path_factory):  # noqa: F811
    """(packed folder, unpacked folder) of stacks in MXFP4."""
    out = tmp_path_factory.mktemp("stacks")
    folder = lay_folder(out / "gpt-oss", shared, "gpt-oss-20b", "smollm2",
                        {**SMALL_GPT_OSS, **SMOLLM2_TOKENS, "pad_token_id": 0})
    run_child(torch_env, "make", folder, 1, "float32", "50GB")
    write_gpt_oss(folder, out)
    run_child(torch_env, "unpack_mxfp4", out / "packed", out / "theirs.safetensors")
    theirs, ours = load_file(out / "theirs.safetensors"), load_file(out / "unpacked" / "model.safetensors")
    assert len(theirs) == 6 and all(np.array_equal(ours[name], weights) for name, weights in theirs.items())
    return out / "packed", out / "unpacked"


def test_stacks_in_mxfp4_are_those_of_llama_cpps_converter(
    run_nibble, torch_env, converter, gpt_oss, tmp_path  # noqa: F811
):
    packed, unpacked = gpt_oss
    run_converter(converter, torch_env, packed, tmp_path / "theirs.gguf", "f32")
    result = run_nibble("convert", packed, tmp_path / "ours.gguf", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["largest_rounding"] == 0
    (ours, a), (theirs, b) = contents_of(tmp_path / "ours.gguf"), contents_of(tmp_path / "theirs.gguf")
    assert ours == theirs and list(ours) == list(theirs)
    assert [row[:3] for row in a] == [row[:3] for row in b]
    assert [row[0] for row, other in zip(a, b) if row[3] != other[3]] == []
    assert [row[0] for row in a if row[2] == "MXFP4"] == [
        f"blk.{layer}.ffn_{name}_exps.weight" for layer in range(3) for name in ("down", "gate", "up")]
    plain = decoded(convert(run_nibble, packed, tmp_path / "f32.gguf", "--outtype", "f32"))
    for tensor, weights in float32_of(run_nibble, unpacked, tmp_path).items():
        assert np.array_equal(plain[tensor], weights), tensor


def test_log_probs_of_stacks_in_mxfp4(run_nibble, torch_env, gpt_oss, shared, tmp_path):  # noqa: F811
    packed, unpacked = gpt_oss
    path = convert(run_nibble, packed, tmp_path / "packed.gguf")
    model = Converted("packed", unpacked, path, shared, torch_env)
    assert model.difference(run_nibble, tmp_path) < TOLERANCE
    # llama.cpp rounds activations to 8 bits before it multiplies by this type, whereupon some positions go to other experts;
    # two texts are 3.9 apart, this 0.07.
    plain = convert(run_nibble, packed, tmp_path / "f32.gguf", "--outtype", "f32")
    tokens = np.arange(2 * CTX, dtype=np.int32).reshape(2, CTX)
    ours, exact = llama_log_probs(path, tokens, tmp_path), llama_log_probs(plain, tokens, tmp_path)
    assert np.median(np.abs(ours - exact)) < 0.2


@pytest.mark.parametrize("part, change, complaint", [
    ("gate_up_proj_scales", lambda data: None, "gate_up_proj_scales' is missing"),
    ("gate_up_proj_scales", lambda data: data[:, :-1], "is U8 [8, 191, 2], config.json wants U8 [8, 192, 2]"),
    ("down_proj_blocks", lambda data: data[:-1], "is U8 [7, 64, 3, 16], config.json wants U8 [8, 64, 3, 16]"),
    ("down_proj_blocks", lambda data: data.astype(np.int8), "is I8 [8, 64, 3, 16], config.json wants U8"),
    ("down_proj_blocks", lambda data: None, "down_proj_blocks'"),
])
def test_a_stack_in_mxfp4_that_is_not_whole_is_refused(run_nibble, gpt_oss, tmp_path, part, change, complaint):
    folder = pathlib.Path(shutil.copytree(gpt_oss[0], tmp_path / "packed"))
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.1.mlp.experts.{part}"
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = np.ascontiguousarray(changed)
    save_file(tensors, folder / "model.safetensors")
    result = run_nibble("convert", folder, tmp_path / "packed.gguf")
    assert result.returncode == 1 and complaint in result.stderr, result.stderr
