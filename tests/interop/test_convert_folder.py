"""nibble convert on folders whose weights do not matter: tokenizers, memory, mistakes."""

import json

import numpy as np
import pytest

from small_models import tokenizer_files
from test_convert import convert, lay_folder, text_of


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
    ],
    ids=["smollm2", "mistral json", "qwen", "qwen merges", "qwen35", "gemma json"],
)
def test_token_ids_are_those_of_the_tokenizers_library(run_nibble, shared, tmp_path, config, tokenizer, changes):
    tokenizers = pytest.importorskip("tokenizers")
    folder = lay_folder(tmp_path / "model", shared, config, tokenizer, changes)
    write_empty_weights(folder)
    path = convert(run_nibble, folder, tmp_path / "model.gguf")
    text = tmp_path / "text.txt"
    # No space at the start: where one is added, llama.cpp adds it to a space too, the library does not.
    text.write_text(text_of(shared).read_text()[:200_000].lstrip() + "\tdef f(x):\n\n  return x['a'] != 3.14159  # emoji 🙂 日本語 हिन्दी में\n")
    source = folder / "tokenizer.json"
    if not source.exists():
        source = shared / "hf" / tokenizer_files("qwen")["tokenizer.json"]
    theirs = tokenizers.Tokenizer.from_file(str(source)).encode(text.read_text(), add_special_tokens=False)
    result = run_nibble("tokenize", path, text, "--no-special", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ids"] == theirs.ids


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
