"""The configurations for models that people have: what their heads say that they take is what --dry-run finds, from the
models' published sizes."""

import json
import pathlib
import re

import pytest

from published_configs import PUBLISHED

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def llama(width, inner, layers, heads, kv_heads, head, vocab, tied, family="Llama"):
    return {
        "architectures": [f"{family}ForCausalLM"], "model_type": family.lower(), "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head,
        "vocab_size": vocab, "tie_word_embeddings": tied, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "hidden_act": "silu",
    }  # fmt: skip


def qwen3(width, inner, layers, heads, tied):
    return llama(width, inner, layers, heads, 8, 128, 151936, tied, "Qwen3")


def gemma3(width, inner, layers):
    return {
        **llama(width, inner, layers, 4, 1, 256, 262144, True, "Gemma3"), "model_type": "gemma3_text", "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 512, "rope_theta": 1e6,
    }  # fmt: skip


def qwen35(width, inner, layers, heads, tied):
    text = {
        **llama(width, inner, layers, heads, 2, 256, 248320, tied), "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 16, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    return {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": text}


# From the models' own config.json.
MODELS = {
    "qwen3_0.6b": qwen3(1024, 3072, 28, 16, True),
    "qwen3_1.7b": qwen3(2048, 6144, 28, 16, True),
    "qwen3_4b": qwen3(2560, 9728, 36, 32, True),
    "qwen3_8b": qwen3(4096, 12288, 36, 32, False),
    "qwen3.5_0.8b": qwen35(1024, 3584, 24, 8, True),
    "llama3.2_1b": llama(2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama3.2_3b": llama(3072, 8192, 28, 24, 8, 128, 128256, True),
    "llama3.1_8b": llama(4096, 14336, 32, 32, 8, 128, 128256, False),
    "llama3.1_8b_12gb": llama(4096, 14336, 32, 32, 8, 128, 128256, False),
    "gemma3_270m": gemma3(640, 2048, 18),
    "gemma3_1b": gemma3(1152, 6912, 26),
    "smollm3_3b": PUBLISHED["SmolLM3-3B"],
    "phi4_mini": PUBLISHED["Phi-4-mini"],
    "gemma2_2b": PUBLISHED["gemma-2-2b"],
    "gpt_oss_20b": PUBLISHED["gpt-oss-20b"],
    "mistral_7b": llama(4096, 14336, 32, 32, 8, 128, 32768, False, "Mistral"),
}
TYPES = ["Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K", "Q2_0"]


@pytest.fixture
def forecast(run_nibble, tmp_path):
    def run(name, *settings):
        (tmp_path / "config.json").write_text(json.dumps(MODELS[name]))
        (tmp_path / "text.txt").write_text("x")
        text = tmp_path / "text.txt"
        given = [f"model={tmp_path}", f"data.files=[{text}]", *settings]
        given += [f"compare.text={text}"] * ("compare:" in (CONFIGS / f"{name}.yaml").read_text())
        sets = [word for setting in given for word in ("--set", setting)]
        result = run_nibble("train", CONFIGS / f"{name}.yaml", "--dry-run", "--json", *sets)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.mark.parametrize("name", MODELS)
def test_what_the_head_says(forecast, name):
    said = dict(re.findall(r"^# +(memory|operations) +([\d.e+]+)", (CONFIGS / f"{name}.yaml").read_text(), re.M))
    found = forecast(name)
    assert float(said["memory"]) == pytest.approx(found["memory_bytes"] / 1e9, rel=0.01)
    assert float(said["operations"]) == pytest.approx(found["operations"], rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_every_type(forecast, name):
    """Each head lists the file sizes by type."""
    head = (CONFIGS / f"{name}.yaml").read_text()
    for type_name in TYPES:
        size = float(re.search(rf"{type_name} ([\d.]+) GB", head)[1])
        assert size == pytest.approx(forecast(name, f"quant.type={type_name}")["file_bytes"] / 1e9, rel=0.01)
