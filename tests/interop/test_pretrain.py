"""A model from nothing: the real llama.cpp reads the tokenizer and the weights that a training run makes of text alone."""

import json
import math
import pathlib
import sysconfig

import pytest

from test_perplexity import F32_CACHE, number_after
from test_tokenizer import NASTY, Vocabulary

CONFIG = """
name: tiny
new_model: {width: 128, feed_forward: 192, layers: 2, heads: 4, kv_heads: 2, context: 128, vocab_size: 512}
quant: {type: none}
data: {files: [train.jsonl], sequence_length: 64}
loss: {kind: ce}
optimizer: {learning_rate: 5e-3, weight_decay: 0.1, beta2: 0.95}
batch_tokens: 512
max_tokens: 51200
dtype: float32
evaluate_every: 50
checkpoint_every: 20
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with some of Python's own sources: train.jsonl, a row a file, and held_out.txt."""
    folder = tmp_path_factory.mktemp("pretrain")
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    sources = [p.read_text(encoding="utf-8") for p in sorted(library.glob("*.py")) if p.stat().st_size < 40_000][:60]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sources[5:]))
    (folder / "held_out.txt").write_text("\n".join(sources[:5]), encoding="utf-8")
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def pretrained(corpus, run_nibble):
    """(run folder, exported file)"""
    result = run_nibble("train", "tiny.yaml", "--json", cwd=corpus)
    assert result.returncode == 0, result.stderr
    run, out = corpus / "runs" / "tiny", corpus / "tiny-f32.gguf"
    result = run_nibble("export", run, out)
    assert result.returncode == 0, result.stderr
    return run, out


def test_it_learns(pretrained):
    rows = [json.loads(line) for line in (pretrained[0] / "metrics.jsonl").read_text().splitlines()]
    held_out = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    # Random weights know nothing, and logits of unit variance cost half a nat more than none; how often each token
    # occurs is alone worth a nat.
    assert held_out[0] == pytest.approx(math.log(512) + 0.5, abs=0.2)
    assert held_out[-1] < math.log(512) - 1.5


def test_the_file_is_a_llama_of_the_wanted_shape(pretrained):
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(pretrained[1])
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["nibble.method"].contents() == "training"
    shapes = {t.name: tuple(map(int, t.shape)) for t in reader.tensors}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (128, 512)
    assert shapes["blk.1.attn_v.weight"] == (128, 64)
    assert shapes["blk.0.ffn_down.weight"] == (192, 128)
    assert {t.tensor_type.name for t in reader.tensors} == {"F32"}


def test_verify_against_the_run(pretrained, run_nibble):
    run, out = pretrained
    result = run_nibble("verify", out, "--against", run)
    assert result.returncode == 0, result.stdout + result.stderr


def test_llama_cpp_has_the_same_tokens(pretrained, corpus, run_nibble, tmp_path):
    vocabulary = Vocabulary(pretrained[1])
    held_out = (corpus / "held_out.txt").read_bytes()
    for name, data in {**NASTY, "held out": held_out, "one word": b"return"}.items():
        (tmp_path / "text").write_bytes(data)
        result = run_nibble("tokenize", pretrained[1], tmp_path / "text", "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["ids"] == vocabulary.encode(data, True), name


def test_llama_cpp_has_the_same_perplexity(pretrained, corpus, run_nibble, run_llama):
    text = corpus / "held_out.txt"
    theirs = "".join(run_llama(
        "llama-perplexity", "-m", pretrained[1], "-f", text, "-c", 128, "--chunks", 40, *F32_CACHE,
        until=r"Final estimate: PPL = \S+ \+/- \S+\n",
    ))
    ours = run_nibble("perplexity", pretrained[1], text, "--ctx", 128, "--chunks", 40, "--json")
    assert ours.returncode == 0, ours.stderr
    # llama-perplexity prints four digits.
    assert json.loads(ours.stdout)["ppl"] == pytest.approx(number_after("PPL", theirs)[0], abs=1.5e-4)
    assert json.loads(ours.stdout)["ppl"] < 200, "an untrained model has 512"


def test_llama_cpp_generates(pretrained, llama_generates):
    llama_generates(pretrained[1], "import ")


def test_it_is_trained_onto_a_grid_next(pretrained, corpus, run_nibble):
    """The second of the two runs: distillation from the new model itself, all matrices in Q2_0."""
    (corpus / "grid.yaml").write_text(f"""
name: grid
model: {pretrained[1]}
quant: {{type: Q2_0, pure: true}}
data: {{files: [train.jsonl], sequence_length: 64}}
optimizer: {{learning_rate: 1e-3, scale_learning_rate: 3e-3}}
batch_tokens: 512
max_tokens: 15360
baselines: [search]
compare: {{text: held_out.txt, ctx: 64, chunks: 20}}
""")
    result = run_nibble("run", "grid.yaml", "--json", cwd=corpus)
    assert result.returncode == 0, result.stderr
    kld = {model["name"]: model["mean_kld"] for model in json.loads(result.stdout)["models"]}
    assert kld["Q2_0 trained"] < 0.6 * kld["Q2_0 search"], kld


def test_the_same_text_and_seed_give_the_same_start(pretrained, corpus, run_nibble, tmp_path):
    run = pretrained[0]
    for seed in (1, 2):
        result = run_nibble("train", "tiny.yaml", "--set", f"seed={seed}", "--set", "max_tokens=512", "--set",
                            f"output={tmp_path / str(seed)}", cwd=corpus)
        assert result.returncode == 0, result.stderr
    start = (tmp_path / "1" / "base-f32.gguf").read_bytes()
    assert start == (run / "base-f32.gguf").read_bytes()
    assert start != (tmp_path / "2" / "base-f32.gguf").read_bytes()


def test_another_model_is_no_resumption(pretrained, corpus, run_nibble):
    before = (pretrained[0] / "base-f32.gguf").read_bytes()
    result = run_nibble("train", "tiny.yaml", "--resume", "--set", "new_model.heads=8", cwd=corpus)
    assert result.returncode == 2 and "new_model: differs" in result.stderr, result.stderr
    assert (pretrained[0] / "base-f32.gguf").read_bytes() == before


@pytest.mark.parametrize(
    "settings, status, wanted",
    [
        (["new_model.heads=3"], 2, "--set: new_model.heads: must divide new_model.width 128, found 3"),
        (["loss.kind=kl"], 2, "loss.kind: wants ce"),
        (["new_model.vocab_size=60000"], 1, "no tokenizer of 60000 tokens"),
    ],
)
def test_mistakes_are_one_line(corpus, run_nibble, tmp_path, settings, status, wanted):
    more = [argument for setting in settings for argument in ("--set", setting)]
    result = run_nibble("train", "tiny.yaml", "--set", f"output={tmp_path / 'out'}", *more, cwd=corpus)
    assert result.returncode == status, result.stderr
    assert wanted in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_run_wants_something_to_compare_with(corpus, run_nibble):
    result = run_nibble("run", "tiny.yaml", cwd=corpus)
    assert result.returncode == 2 and "use nibble train" in result.stderr, result.stderr
