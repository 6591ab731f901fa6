"""nibble convert --adapter against what peft's merge_and_unload() makes of the same adapter."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_convert import convert, torch_env  # noqa: F401
from test_packed import decoded, mixture, source, types  # noqa: F401

CHILD = pathlib.Path(__file__).with_name("peft_child.py")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "lora": {"r": 8, "lora_alpha": 16, "target_modules": PROJECTIONS},
    "rslora": {"r": 16, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 4, "target_modules": PROJECTIONS, "rank_pattern": {"down_proj": 12},
        "alpha_pattern": {"down_proj": 36, "layers.1.self_attn.q_proj": 10},
    },
    "saved": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
}
REFUSED = {
    "use_dora": ({"use_dora": True}, "key 'use_dora' is set"),
    "pissa": ({"init_lora_weights": "pissa"}, "key 'init_lora_weights': \"pissa\""),
    "bias": ({"bias": "all"}, "key 'bias': 'all'"),
    "another method": ({"peft_type": "IA3"}, "key 'peft_type': 'IA3'"),
    "transposed": ({"fan_in_fan_out": True}, "key 'fan_in_fan_out' is set"),
    "an expression": ({"alpha_pattern": {".*_proj": 3}}, "'.*_proj' is no plain name"),
    "no alpha": ({"lora_alpha": None}, "has no 'lora_alpha'"),
}


@pytest.fixture(scope="session")
def adapter(source, torch_env, tmp_path_factory):  # noqa: F811
    """(adapter folder, folder of the merged model) of a name in ADAPTERS."""
    made = {}
    if not importlib.util.find_spec("peft"):
        pytest.skip("no peft: run scripts/peers")

    def make(name):
        if name not in made:
            out = tmp_path_factory.mktemp("adapter")
            result = subprocess.run(
                [sys.executable, CHILD, source("float16"), out / "adapter", out / "merged", json.dumps(ADAPTERS[name])],
                env=torch_env, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr[-2000:]
            made[name] = out / "adapter", out / "merged"
        return made[name]

    return make


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_weights_are_pefts(run_nibble, source, adapter, name, tmp_path):  # noqa: F811
    folder, merged = adapter(name)
    base = decoded(convert(run_nibble, source("float16"), tmp_path / "base.gguf", "--outtype", "f32"))
    ours = decoded(convert(run_nibble, source("float16"), tmp_path / "ours.gguf", "--outtype", "f32", "--adapter", folder))
    theirs = decoded(convert(run_nibble, merged, tmp_path / "theirs.gguf", "--outtype", "f32"))
    assert ours.keys() == theirs.keys()
    changed = 0
    for tensor, weights in theirs.items():
        # Both sum at most 16 products in float32, in different orders: each product and sum is rounded, by 2^-24 of
        # something not above the sum of the products' sizes, which here stays below 16.
        assert np.abs(ours[tensor] - weights).max() <= 2 * 16 * 2.0**-24, tensor
        changed += not np.array_equal(base[tensor], weights)
        assert np.array_equal(base[tensor], weights) == np.array_equal(base[tensor], ours[tensor]), tensor
    settings = ADAPTERS[name]
    assert changed == 2 * (len(settings["target_modules"]) + len(settings.get("modules_to_save", [])))


def test_the_stored_type_is_kept(run_nibble, source, adapter, tmp_path):  # noqa: F811
    folder, _ = adapter("lora")
    path = convert(run_nibble, source("float16"), tmp_path / "f16.gguf", "--adapter", folder)
    wide = decoded(convert(run_nibble, source("float16"), tmp_path / "f32.gguf", "--outtype", "f32", "--adapter", folder))
    assert types(path)["blk.0.attn_q.weight"] == "F16"
    for tensor, weights in decoded(path).items():
        assert np.array_equal(weights, wide[tensor].astype(np.float16) if types(path)[tensor] == "F16" else wide[tensor])


def changed_adapter(adapter, tmp_path, settings=None, tensors=None):
    folder = pathlib.Path(shutil.copytree(adapter("lora")[0], tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | (settings or {})))
    if tensors:
        old = load_file(folder / "adapter_model.safetensors")
        save_file(tensors(old), folder / "adapter_model.safetensors")
    return folder


def complaint(run_nibble, source, folder, tmp_path):  # noqa: F811
    result = run_nibble("convert", source("float16"), tmp_path / "out.gguf", "--adapter", folder)
    assert result.returncode == 1 and not (tmp_path / "out.gguf").exists()
    assert str(folder) in result.stderr
    return result.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_other_adapters_are_refused_by_name(run_nibble, source, adapter, name, tmp_path):  # noqa: F811
    settings, wanted = REFUSED[name]
    assert wanted in complaint(run_nibble, source, changed_adapter(adapter, tmp_path, settings), tmp_path)


PREFIX = "base_model.model.model.layers.0.self_attn.q_proj."
HOSTILE = {
    "no B": (lambda t: {k: v for k, v in t.items() if k != PREFIX + "lora_B.weight"}, "lora_B is missing"),
    "another rank": (lambda t: t | {PREFIX + "lora_B.weight": np.zeros((128, 7), np.float32)}, "do not fit a matrix of [128, 128]"),
    "one size": (lambda t: t | {PREFIX + "lora_A.weight": np.zeros(8, np.float32)}, "wanted two sizes"),
    "no number": (lambda t: t | {PREFIX + "lora_A.weight": np.full((8, 128), np.nan, np.float32)}, "row 0"),
    "integers": (lambda t: t | {PREFIX + "lora_A.weight": np.zeros((8, 128), np.int32)}, "is stored as I32"),
    "another model's": (
        lambda t: {k.replace("layers.1.", "layers.7."): v for k, v in t.items()},
        "layers.7.mlp.down_proj.weight': the model has no such tensor"),
    "magnitudes": (lambda t: t | {PREFIX + "lora_magnitude_vector": np.zeros(128, np.float32)}, "lora_A and lora_B only"),
    "embeddings": (
        lambda t: t | {"base_model.model.model.embed_tokens.weight": np.zeros((257, 128), np.float32)}, "is tied to it"),
    "embeddings' LoRA": (
        lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((8, 257), np.float32)},
        "LoRA of embeddings is not merged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tensors_that_do_not_fit(run_nibble, source, adapter, name, tmp_path):  # noqa: F811
    change, wanted = HOSTILE[name]
    assert wanted in complaint(run_nibble, source, changed_adapter(adapter, tmp_path, tensors=change), tmp_path)


def test_a_configuration_names_one(run_nibble, source, adapter, shared, tmp_path):  # noqa: F811
    text = tmp_path / "text.txt"
    text.write_text((shared / "text" / "wikitext-2-raw" / "wiki.test.raw").read_text()[:20_000])
    config = tmp_path / "run.yaml"

    def write(model):
        config.write_text(f"""name: tiny
model: {model}
adapter: {adapter("lora")[0]}
output: {tmp_path / "run"}
quant: {{type: Q4_0, initial: rtn}}
data: {{files: ["{text}"], sequence_length: 64}}
loss: {{kind: kl}}
batch_tokens: 64
max_tokens: 64
""")

    write(source("float16"))
    result = run_nibble("train", config)
    assert result.returncode == 0, result.stderr
    merged = convert(run_nibble, source("float16"), tmp_path / "merged.gguf", "--adapter", adapter("lora")[0])
    assert (tmp_path / "run" / "llama.gguf").read_bytes() == merged.read_bytes()
    result = run_nibble("export", tmp_path / "run", tmp_path / "out.gguf")
    assert result.returncode == 0, result.stderr
    write(merged)
    result = run_nibble("train", config)
    assert result.returncode == 2 and "adapter: is merged into a Hugging Face folder" in result.stderr


def test_lora_of_an_experts_matrix(run_nibble, mixture, tmp_path):  # noqa: F811
    """As PEFT made it where transformers had a module for each expert; of the other experts nothing changes."""
    module, folder = "model.layers.1.mlp.experts.4.down_proj", tmp_path / "adapter"
    random = np.random.default_rng(0)
    a, b = (random.normal(size=size).astype(np.float32) for size in [(4, 64), (64, 4)])
    folder.mkdir()
    config = {"peft_type": "LORA", "lora_alpha": 2, "r": 4, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = f"base_model.model.{module}"
    save_file({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    before = decoded(convert(run_nibble, mixture, tmp_path / "before.gguf", "--outtype", "f32"))
    after = decoded(convert(run_nibble, mixture, tmp_path / "after.gguf", "--outtype", "f32", "--adapter", folder))
    stack = before["blk.1.ffn_down_exps.weight"] = before["blk.1.ffn_down_exps.weight"].copy()
    stack.reshape(6, 64, 64)[4] += 0.5 * (b.astype(np.float64) @ a).astype(np.float32)
    for tensor, weights in before.items():
        # Four products, rounded in another order.
        assert np.abs(after[tensor] - weights).max() <= (1e-5 if tensor == "blk.1.ffn_down_exps.weight" else 0), tensor
