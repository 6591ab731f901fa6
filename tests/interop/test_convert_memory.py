"""nibble convert and nibble export --hf need no memory that grows with the model: both work under a limit of the operating
system that is far below the model's own size, packed or not, with an adapter or without."""

import json
import resource

import numpy as np
import pytest
from packed_checkpoints import write_checkpoint
from safetensors.numpy import load_file, save_file
from test_convert import lay_folder
from test_convert_folder import write_empty_weights
from test_packed import byte_tokenizer

# As in test_quantize_memory.py: all that is no map of a file to read, the second thread's stack included.
STACK = 8 << 20
# The program's data, a small tokenizer, two threads' pieces of 64 K weights and what they are written through.
LIMIT = STACK + (16 << 20)
WIDTH = 512


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """16 layers of 3 to 4 MB matrices in float32: 200 MB."""
    folder = lay_folder(tmp_path_factory.mktemp("memory") / "model", shared, "SmolLM2-135M", "smollm2",
                        {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 16, "head_dim": 64,
                         "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 257, "bos_token_id": None,
                         "eos_token_id": None})
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    write_empty_weights(folder)
    path = folder / "model.safetensors"
    save_file({name: weights + 1 for name, weights in load_file(path).items()}, path)
    assert (folder / "model.safetensors").stat().st_size > 8 * LIMIT
    return folder


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """The same as GPTQ's codes of 35 MB."""
    out = tmp_path_factory.mktemp("packed")
    write_checkpoint(folder, out, "gptq", group_size=128)
    assert (out / "packed" / "model.safetensors").stat().st_size > LIMIT
    return out / "packed"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, "r": 8}))
    sizes = {"self_attn.q_proj": (WIDTH, WIDTH), "mlp.up_proj": (4 * WIDTH, WIDTH), "mlp.down_proj": (WIDTH, 4 * WIDTH)}
    tensors = {}
    for layer in range(16):
        for name, (rows, columns) in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[prefix + "A.weight"] = np.ones((8, columns), np.float32)
            tensors[prefix + "B.weight"] = np.ones((rows, 8), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def limited(run_nibble, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    def run(*arguments, limit=LIMIT):
        def limits():
            resource.setrlimit(resource.RLIMIT_STACK, (STACK, STACK))
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        return run_nibble(*arguments, preexec_fn=limits)

    return run


def test_a_model_larger_than_the_limit(limited, folder, tmp_path):
    result = limited("convert", "-q", folder, tmp_path / "out.gguf", "--outtype", "f16")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.gguf").stat().st_size > 4 * LIMIT


def test_packed(limited, packed, tmp_path):
    for out, flags in [("codes.gguf", []), ("f32.gguf", ["--outtype", "f32"])]:
        result = limited("convert", "-q", packed, tmp_path / out, *flags)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "f32.gguf").stat().st_size > 8 * LIMIT


def test_with_an_adapter(limited, folder, adapter, tmp_path):
    result = limited("convert", "-q", folder, tmp_path / "out.gguf", "--adapter", adapter)
    assert result.returncode == 0, result.stderr


def test_export_of_a_folder(limited, folder, tmp_path):
    """In the program with LibTorch, whose own data take some 70 MB."""
    result = limited("convert", "-q", folder, tmp_path / "model.gguf", "--outtype", "f32")
    assert result.returncode == 0, result.stderr
    limit = 128 << 20
    assert (tmp_path / "model.gguf").stat().st_size > 1.9 * limit
    result = limited("export", tmp_path / "model.gguf", "--hf", tmp_path / "out", "--like", folder, limit=limit)
    assert result.returncode == 0, result.stderr


def test_the_limit_is_one(limited, folder, tmp_path):
    result = limited("convert", "-q", folder, tmp_path / "out.gguf", limit=4 << 20)
    assert result.returncode != 0
    assert not list(tmp_path.glob("out.gguf*"))
