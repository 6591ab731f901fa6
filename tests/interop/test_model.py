"""Log-probabilities of nibble against llama.cpp's, both in float32.

nibble's come out of its base files: exact but for the half step of their 16-bit codes, which is subtracted from the
difference; entries further than 16 nats below a row's maximum are cut off there and left out.
"""

import os
import pathlib
import subprocess
import sys

import gguf
import numpy as np
import pytest

from kl_base import read_kl_base

# Both sum in float32, in different orders: through 30 layers that reached 3e-4 on SmolLM2 and 9e-5 on stories260K.
TOLERANCE = 1e-3
# A broken model must miss by far more than the tolerance allows.
BROKEN = 10 * TOLERANCE
READ_IT = object()


def llama_log_probs(model, tokens, folder, float_gelu=False):
    """`float_gelu`: by the llama.cpp that computes GELU in float32 (scripts/peers)."""
    package = pathlib.Path(pytest.importorskip("llama_cpp").__file__).parent
    np.save(folder / "tokens.npy", tokens)
    child = pathlib.Path(__file__).with_name("llama_cpp_child.py")
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(package / "float_gelu")} if float_gelu else None
    subprocess.run(
        [sys.executable, child, model, folder / "tokens.npy", folder / "out.npy"],
        check=True, timeout=600, capture_output=True, env=env,
    )
    return np.load(folder / "out.npy")


def bos_token(model):
    """bos_of() of a file."""
    return bos_of(gguf.GGUFReader(model).fields)


def bos_of(fields):
    """The id that replaces each chunk's first token, or None."""
    kind = fields["tokenizer.ggml.model"].contents()
    add = fields.get("tokenizer.ggml.add_bos_token")
    if not (add.contents() if add else kind == "llama"):
        return None
    return fields["tokenizer.ggml.bos_token_id"].contents()


def largest_difference(
    run_nibble, model, text, folder, reference=None, chunks=3, ctx=512, log_probs=None, bos=READ_IT, excluded=None
):
    """Largest |ln p(nibble) - ln p(llama.cpp)| over the scored rows; `reference`: the model that llama.cpp runs;
    `log_probs`: what to ask in llama.cpp's place, a function of tokens [chunks, ctx]; `bos`: bos_of() if known,
    which takes seconds for a large vocabulary."""
    result = run_nibble(
        "perplexity", model, text, "--ctx", ctx, "--chunks", chunks, "--kl-divergence-base", folder / "base.kld"
    )
    assert result.returncode == 0, result.stderr
    base = read_kl_base(folder / "base.kld")
    tokens = base.tokens.copy()
    bos = bos_token(model) if bos is READ_IT else bos
    if bos is not None:
        tokens[:, 0] = bos
    rows = slice(base.first, base.ctx - 1)
    theirs = log_probs(tokens) if log_probs else llama_log_probs(reference or model, tokens, folder)
    wanted = theirs[:, rows].astype(np.float64)
    kept = wanted > wanted.max(-1, keepdims=True) - 15.9
    assert kept.any(-1).all()
    if excluded:
        kept &= ~excluded(tokens)[:, rows, None]
    difference = np.abs(base.log_probs() - wanted) - 0.5 * base.step[..., None]
    return difference[kept].max()


def tinystories(shared):
    return shared / "text" / "tinystories" / "valid_v1_nosep.txt"


def wikitext(shared):
    return shared / "text" / "wikitext-2-raw" / "wiki.test.raw"


def test_stories260k(run_nibble, stories260k, shared, tmp_path):
    assert largest_difference(run_nibble, stories260k, tinystories(shared), tmp_path) < TOLERANCE


def test_smollm2(run_nibble, smollm2_f32, shared, tmp_path):
    assert largest_difference(run_nibble, smollm2_f32, wikitext(shared), tmp_path, chunks=2) < TOLERANCE


def rewrite(source, path, *, keys=(), divisors=None, change=lambda name, data: data):
    """A copy of a float32 file with more metadata, with rope divisors, or with changed tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    replaced = {key for key, _, _ in keys} | {"general.architecture"}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in replaced:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub)
    for key, value, kind in keys:
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(change(tensor.name, tensor.data.copy())))
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(divisors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FLOAT, STRING, UINT = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING, gguf.GGUFValueType.UINT32
SCALING = "llama.rope.scaling."
ROPE_VARIANTS = {
    "base": {"keys": [("llama.rope.freq_base", 50000.0, FLOAT)]},
    "linear": {"keys": [(SCALING + "type", "linear", STRING), (SCALING + "factor", 4.0, FLOAT)]},
    "none": {"keys": [(SCALING + "type", "none", STRING), (SCALING + "factor", 4.0, FLOAT)]},
    "yarn": {
        "keys": [
            (SCALING + "type", "yarn", STRING),
            (SCALING + "factor", 4.0, FLOAT),
            (SCALING + "original_context_length", 128, UINT),
        ]
    },
    "yarn with attention factor": {
        "keys": [
            (SCALING + "type", "yarn", STRING),
            (SCALING + "factor", 2.0, FLOAT),
            (SCALING + "original_context_length", 256, UINT),
            (SCALING + "attn_factor", 1.25, FLOAT),
        ]
    },
    "divisors, as Llama 3 scales": {"divisors": [1.0, 1.0, 3.0, 8.0]},
}


@pytest.mark.parametrize("variant", ROPE_VARIANTS.values(), ids=ROPE_VARIANTS.keys())
def test_rope_scaling(run_nibble, stories260k, shared, tmp_path, variant):
    model = rewrite(stories260k, tmp_path / "model.gguf", **variant)
    assert largest_difference(run_nibble, model, tinystories(shared), tmp_path) < TOLERANCE
    if variant is not ROPE_VARIANTS["none"]:
        # The control: the scaling is there to be missed.
        wrong = largest_difference(run_nibble, stories260k, tinystories(shared), tmp_path, reference=model, chunks=1)
        assert wrong > BROKEN


def test_tied_output(run_nibble, stories260k, shared, tmp_path):
    """Without output.weight the embedding takes its place."""
    reader = gguf.GGUFReader(stories260k)
    embedding = next(t.data for t in reader.tensors if t.name == "token_embd.weight")
    tied = rewrite(
        stories260k, tmp_path / "tied.gguf",
        change=lambda name, data: embedding.copy() if name == "output.weight" else data,
    )
    assert largest_difference(run_nibble, tied, tinystories(shared), tmp_path) < TOLERANCE


BROKEN_MODELS = {
    "a norm's weight is dropped": {
        "change": lambda name, data: np.ones_like(data) if name == "blk.2.ffn_norm.weight" else data
    },
    "an output norm is dropped": {
        "change": lambda name, data: np.ones_like(data) if name == "output_norm.weight" else data
    },
    "one head's values are gone": {
        "change": lambda name, data: np.concatenate([data[:-8], np.zeros_like(data[-8:])])
        if name == "blk.4.attn_v.weight" else data
    },
    "the norm's epsilon is wrong": {"keys": [("llama.attention.layer_norm_rms_epsilon", 1e-2, FLOAT)]},
    "the rope base is wrong": {"keys": [("llama.rope.freq_base", 20000.0, FLOAT)]},
}


@pytest.mark.parametrize("change", BROKEN_MODELS.values(), ids=BROKEN_MODELS.keys())
def test_negative_controls(run_nibble, stories260k, shared, tmp_path, change):
    broken = rewrite(stories260k, tmp_path / "broken.gguf", **change)
    wrong = largest_difference(run_nibble, broken, tinystories(shared), tmp_path, reference=stories260k, chunks=1)
    assert wrong > BROKEN


def test_unknown_architecture(run_nibble, stories260k, shared, tmp_path):
    model = rewrite(stories260k, tmp_path / "model.gguf")
    data = model.read_bytes()
    name = b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama"
    assert name in data
    model.write_bytes(data.replace(name, name[:-5] + b"lemon"))
    result = run_nibble("perplexity", model, tinystories(shared))
    assert result.returncode == 1
    assert "unknown architecture 'lemon'; nibble has llama, " in result.stderr.splitlines()[-1]
    assert str(model) in result.stderr
