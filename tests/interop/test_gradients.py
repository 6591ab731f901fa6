"""Gradients of every tensor against transformers': what the first step of a training takes off its weights against what
transformers' backward pass gives, saved as a model's weights and brought into GGUF's layout by nibble convert."""

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from test_convert import (  # noqa: F401
    CTX, convert, converted, converter, make_model, reference_dtype, run_child, text_of, torch_env,
)
from test_hf_folder import NAMES, adds_one
from test_packed import decoded

CONFIG = """
model: {model}
output: {output}
quant: {{type: none}}
data: {{files: ["{text}"], sequence_length: {length}, held_out: 0}}
loss: {{kind: ce}}
optimizer: {{learning_rate: 1, epsilon: 1, warmup: 0, final_ratio: 1, clip_norm: 0}}
batch_tokens: {length}
max_tokens: {length}
evaluate_every: 0
dtype: float32
"""


def one_sequence(run_nibble, path, text, folder):
    """A text of one sequence and a rest that is left out; its tokens."""
    start, size = folder / "start.txt", 2 * CTX
    while True:
        start.write_text(text[:size])
        ids = json.loads(run_nibble("tokenize", path, start, "--json").stdout)["ids"]
        if len(ids) >= CTX:
            assert len(ids) < 2 * CTX
            return start, ids[:CTX]
        size += CTX // 4


def trained_gradients(run, weights):
    """{name: gradient}. Adam's first step with a rate and an epsilon of 1 takes off g / (|g| + 1)."""
    gradients = {}
    with safe_open(run / "checkpoints" / "last.safetensors", "np") as file:
        for name in weights:
            if not name.startswith("rope_"):
                step = weights[name].reshape(-1).astype(np.float64) - file.get_tensor(name).reshape(-1)
                gradients[name] = step / (1 - np.abs(step))
    return gradients


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_transformers(
    run_nibble, torch_env, converted, shared, one_thread, name, tmp_path  # noqa: F811
):
    model = converted(name)
    text, tokens = one_sequence(run_nibble, model.path, text_of(shared).read_text()[100:], tmp_path)
    config = tmp_path / "step.yaml"
    config.write_text(CONFIG.format(model=model.path, output=tmp_path / "run", text=text, length=CTX))
    result = run_nibble("train", config)
    assert result.returncode == 0, result.stderr

    np.save(tmp_path / "tokens.npy", np.array([tokens]))
    shutil.copytree(model.folder, tmp_path / "gradients", ignore=shutil.ignore_patterns("*.safetensors*"))
    run_child(torch_env, "gradients", model.folder, tmp_path / "tokens.npy", tmp_path / "gradients", reference_dtype(name))
    wanted = decoded(convert(run_nibble, tmp_path / "gradients", tmp_path / "gradients.gguf", "--outtype", "f32"))
    weights = decoded(model.path)
    for tensor, gradient in trained_gradients(tmp_path / "run", weights).items():
        theirs = wanted[tensor].reshape(-1).astype(np.float64)
        if adds_one(name, tensor) or (name == "gemma2" and "norm" in tensor):
            theirs = theirs - 1
        if tensor.endswith(".ssm_a"):  # a = -exp(A_log), and convert did the same to dL/dA_log
            theirs, gradient = np.log(-theirs), gradient * weights[tensor].reshape(-1)
        assert np.linalg.norm(gradient - theirs) < 1e-3 * np.linalg.norm(theirs), tensor
