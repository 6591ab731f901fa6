"""nibble convert on folders whose weights do not matter: tokenizers, memory, mistakes."""

import argparse
import json
import pathlib
import unicodedata

import gguf_table
import numpy as np
import pytest
from small_models import tokenizer_files
from test_convert import assert_same_file, convert, converter, lay_folder, run_converter, text_of, torch_env  # noqa: F401
from test_tokenizer import NASTY


def write_empty_weights(folder):
    """Zeros of the shapes that a SMALL config.json wants, in one file; returns the bytes of the largest."""
    from safetensors.numpy import save_file

    config = json.loads((folder / "config.json").read_text())
    width, wide = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config.get("tie_word_embeddings", config["model_type"].startswith("gemma")):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (query, width), "self_attn.k_proj": (key, width), "self_attn.v_proj": (key, width),
            "self_attn.o_proj": (width, query), "mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width),
            "mlp.down_proj": (width, wide), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }.items():
            shapes[f"{prefix}{name}.weight"] = shape
        if config["architectures"] in (["Qwen3ForCausalLM"], ["Gemma3ForCausalLM"]):
            shapes[f"{prefix}self_attn.q_norm.weight"] = shapes[f"{prefix}self_attn.k_norm.weight"] = (head,)
        if config["architectures"] == ["Gemma3ForCausalLM"]:
            for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
                shapes[f"{prefix}{name}.weight"] = (width,)
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return max(4 * int(np.prod(shape)) for shape in shapes.values())


def store_as_float8(folder, dtype):
    """Random bytes without NaN and infinity in the place of the matrices of model.safetensors."""
    from safetensors.numpy import load_file

    draw = np.random.default_rng(8)
    last = {"F8_E4M3": 0x7E, "F8_E5M2": 0x7B}[dtype]
    header, data = {}, b""
    for name, values in load_file(folder / "model.safetensors").items():
        is_matrix = values.ndim == 2
        if is_matrix:
            signs = draw.integers(0, 2, values.shape) << 7
            values = (draw.integers(0, last + 1, values.shape) | signs).astype(np.uint8)
        stored = values.tobytes()
        header[name] = {
            "dtype": dtype if is_matrix else "F32", "shape": values.shape,
            "data_offsets": [len(data), len(data) + len(stored)],
        }  # fmt: skip
        data += stored
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_8_bit_floats_are_those_of_llama_cpps_converter(run_nibble, torch_env, converter, shared, tmp_path, dtype):  # noqa: F811
    folder = lay_folder(tmp_path / "tiny-1B", shared, "Mistral-7B-Instruct-v0.3", "mistral", {})
    write_empty_weights(folder)
    store_as_float8(folder, dtype)
    for outtype in ("f32", "f16", "bf16"):
        run_converter(converter, torch_env, folder, tmp_path / "theirs.gguf", outtype)
        convert(run_nibble, folder, tmp_path / "ours.gguf", "--outtype", outtype)
        assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    result = run_nibble("convert", folder, tmp_path / "auto.gguf", "--json")
    assert json.loads(result.stdout)["type"] == "BF16"  # which holds both
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] = 0x7F  # of the embedding, which comes first; NaN in both
    (folder / "model.safetensors").write_bytes(content)
    result = run_nibble("convert", folder, tmp_path / "nan.gguf")
    assert result.returncode == 1 and "holds a NaN" in result.stderr, result.stderr
    assert not (tmp_path / "nan.gguf").exists()


def mixed_text(shared):
    """Two megabytes: an encyclopedia, code, emoji, many scripts, control characters; composed, since GGUF cannot say that a
    tokenizer does that first."""
    files = [text_of(shared), shared / "text" / "calibration" / "groups_merged_419k.txt", pathlib.Path(argparse.__file__)]
    nasty = [data.decode() for name, data in NASTY.items() if name not in ("not UTF-8", "special tokens")]
    stories = (shared / "text" / "tinystories" / "valid_v1_nosep.txt").read_text()
    # No space at the start: where one is added, llama.cpp adds it to a space too, the library does not.
    text = "\n".join([*(path.read_text() for path in files), *nasty, stories]).lstrip()[:2_000_000]
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "config, tokenizer, changes",
    [
        ("SmolLM2-135M", "smollm2", {}),
        ("Mistral-7B-Instruct-v0.3", "mistral json", {}),
        ("Qwen3-4B", "qwen", {}),
        ("Qwen3-4B", "qwen merges", {}),
        ("Qwen3-4B", "qwen35", {}),
        ("gemma-3-270m-it", "gemma json", {"vocab_size": 32768, "query_pre_attn_scalar": 16, "head_dim": 16,
                                           "layer_types": ["sliding_attention"] * 2}),
        ("SmolLM2-135M", "o200k", {"vocab_size": 201088}),
        ("SmolLM2-135M", "cl100k", {"vocab_size": 100352}),
    ],
    ids=["smollm2", "mistral json", "qwen", "qwen merges", "qwen35", "gemma json", "o200k", "cl100k"],
)
def test_token_ids_are_those_of_the_tokenizers_library(run_nibble, shared, tmp_path, config, tokenizer, changes):
    tokenizers = pytest.importorskip("tokenizers")
    folder = lay_folder(tmp_path / "model", shared, config, tokenizer, changes)
    write_empty_weights(folder)
    path = convert(run_nibble, folder, tmp_path / "model.gguf")
    text = mixed_text(shared)
    if tokenizer == "o200k":  # whose marks end a word in llama.cpp's reading of the expression, and so here
        text = "".join(character for character in text if not unicodedata.category(character).startswith("M"))
    (tmp_path / "text").write_bytes(text.encode())
    source = folder / "tokenizer.json"
    if not source.exists():
        source = shared / "hf" / tokenizer_files("qwen")["tokenizer.json"]
    theirs = tokenizers.Tokenizer.from_file(str(source)).encode(text, add_special_tokens=False)
    result = run_nibble("tokenize", path, tmp_path / "text", "--no-special", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ids"] == theirs.ids


@pytest.mark.parametrize("tokenizer, vocab_size, pre", [("o200k", 201088, b"gpt-4o"), ("cl100k", 100352, b"dbrx")])
def test_openais_vocabularies_have_the_keys_of_llama_cpps_converter(
    run_nibble, torch_env, converter, shared, tmp_path, tokenizer, vocab_size, pre  # noqa: F811
):
    folder = lay_folder(tmp_path / "model", shared, "SmolLM2-135M", tokenizer, {"vocab_size": vocab_size})
    write_empty_weights(folder)
    run_converter(converter, torch_env, folder, tmp_path / "theirs.gguf", "f16")
    convert(run_nibble, folder, tmp_path / "ours.gguf", "--outtype", "f16")
    ours, theirs = (gguf_table.read(tmp_path / file)[0] for file in ("ours.gguf", "theirs.gguf"))
    assert ours == theirs and ours["tokenizer.ggml.pre"][1] == pre


def test_memory_is_that_of_two_tensors(run_nibble, shared, tmp_path):
    """Of a model of many tensors, twenty times as large; a small one takes what any conversion does."""
    tokenizer = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }
    peaks, largest = [], 0
    for layers, width in [(1, 64), (16, 512)]:
        changes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "head_dim": 16,
                   "num_attention_heads": width // 16, "num_key_value_heads": width // 16, "vocab_size": 3}
        folder = lay_folder(tmp_path / str(width), shared, "SmolLM2-135M", "smollm2", changes)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        largest = write_empty_weights(folder)
        result = run_nibble("convert", folder, tmp_path / "model.gguf", "--json")
        assert result.returncode == 0, result.stderr
        peaks.append(json.loads(result.stdout)["peak_bytes"])
    assert (folder / "model.safetensors").stat().st_size > 20 * 2 * largest
    assert peaks[1] < peaks[0] + 2 * largest


def test_a_folder_in_the_place_of_a_file_says_what_to_do(run_nibble, shared, tmp_path):
    folder = lay_folder(tmp_path / "model", shared, "SmolLM2-135M", "smollm2", {"head_dim": 16})
    for arguments in (["quantize", folder, tmp_path / "o.gguf", "Q4_0"], ["perplexity", folder, text_of(shared)]):
        result = run_nibble(*arguments)
        assert result.returncode == 1
        assert f"{folder}: is the folder of a Hugging Face model; nibble convert" in result.stderr
