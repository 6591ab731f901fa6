"""What nibble computes with an exported file against what llama.cpp does, through llama-perplexity's own base files.

Dequantized to float32 both programs multiply the same numbers, so only the order of sums differs. As shipped,
llama.cpp rounds activations to Q8 blocks before each product, and that is the whole of the larger difference.
"""

import json
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# float32 keys and values and plain attention: nothing is rounded but sums.
EXACT = ["-fa", "off", "-ctk", "f32", "-ctv", "f32"]


def llama_perplexity(run_llama, model, base, text, ctx, *flags):
    """llama-perplexity's figures of a model against a base file that nibble wrote."""
    output = "".join(run_llama(
        "llama-perplexity", "-m", model, "-f", text, "-c", ctx, "-b", ctx, "-t", 2, "--kl-divergence-base", base,
        "--kl-divergence", *flags, until=r"(?s)Mean PPL\(Q\).*Mean PPL\(base\).*Mean\s+KLD",
    ))
    number = r"\s*:\s*(-?[\d.eE+-]+)"
    return {
        "mean_kld": float(re.search(r"Mean\s+KLD" + number, output).group(1)),
        "ppl": float(re.search(r"Mean PPL\(Q\)" + number, output).group(1)),
        "ppl_base": float(re.search(r"Mean PPL\(base\)" + number, output).group(1)),
    }


class Shipped:
    """An exported file, its float32 form, and nibble's own log-probabilities of it on a text."""

    def __init__(self, run_nibble, exported, folder, text, ctx, chunks):
        self.exported, self.text, self.ctx = exported, text, ctx
        self.float32, self.base = folder / "f32.gguf", folder / "nibble.kld"
        result = run_nibble("quantize", exported, self.float32, "F32", "--allow-requantize")
        assert result.returncode == 0, result.stderr
        result = run_nibble(
            "perplexity", exported, text, "--ctx", ctx, "--chunks", chunks, "--kl-divergence-base", self.base, "--json"
        )
        assert result.returncode == 0, result.stderr
        self.figures = json.loads(result.stdout)


@pytest.fixture(scope="module")
def stories(report_run, run_nibble, shared, tmp_path_factory):
    exported = next(report_run.glob("*-Q4_0-trained.gguf"))
    text = shared / "text" / "tinystories" / "valid_v1_nosep.txt"
    return Shipped(run_nibble, exported, tmp_path_factory.mktemp("parity"), text, 256, 8)


@pytest.fixture(scope="module")
def smollm2(smollm2_q4_1, run_nibble, shared, tmp_path_factory):
    """Two steps of training: enough that scales and weights are no PTQ's, little enough to wait for."""
    folder = tmp_path_factory.mktemp("parity_smollm2")
    text = shared / "text" / "wikitext-2-raw" / "wiki.test.raw"
    result = run_nibble(
        "run", ROOT / "configs" / "smollm2_q4_0_wikitext.yaml", "--set", f"output={folder / 'run'}",
        "--set", f"model={smollm2_q4_1}", "--set", "max_tokens=512", "--set", "batch_tokens=256",
        "--set", "micro_batch_tokens=256", "--set", "data.sequence_length=256", "--set", "data.max_bytes=200000",
        "--set", "quant.initial=search", "--set", "evaluate_every=0", "--set", "checkpoint_every=0",
        "--set", "baselines=[ggml]",
        "--set", "compare.types=[]", "--set", "compare.ctx=128", "--set", "compare.chunks=1", "--set", "prompts=[]",
        cwd=ROOT, timeout=580,
    )
    assert result.returncode == 0, result.stderr
    exported = next((folder / "run").glob("*-Q4_0-trained.gguf"))
    return Shipped(run_nibble, exported, folder, text, 256, 2)


@pytest.fixture(params=["stories", "smollm2"])
def shipped(request):
    return request.getfixturevalue(request.param)


def test_float32_form_has_the_same_logits(shipped, run_llama):
    theirs = llama_perplexity(run_llama, shipped.float32, shipped.base, shipped.text, shipped.ctx, *EXACT)
    # The base file's 16 bits leave about 1e-6; a wrong weight, rope or norm costs 1e-2 and more.
    assert abs(theirs["mean_kld"]) < 1e-4, theirs
    # Both sum the same terms in another order: six digits.
    assert theirs["ppl"] == pytest.approx(shipped.figures["ppl"], rel=1e-4)


def test_as_shipped_differs_by_activation_rounding_only(shipped, run_llama):
    theirs = llama_perplexity(run_llama, shipped.exported, shipped.base, shipped.text, shipped.ctx, *EXACT)
    assert abs(theirs["mean_kld"]) < 0.01, theirs
    assert theirs["ppl"] == pytest.approx(shipped.figures["ppl"], rel=0.01)


def test_float32_form_is_llama_quantizes(stories, llama_bin, llama_env, tmp_path):
    """Decoding is no matter of opinion: llama-quantize's float32 form of the exported file has the same bytes."""
    import gguf

    theirs = tmp_path / "theirs.gguf"
    subprocess.run(
        [llama_bin("llama-quantize"), "--allow-requantize", stories.exported, theirs, "F32"],
        env=llama_env, check=True, capture_output=True,
    )
    wanted = {t.name: bytes(t.data) for t in gguf.GGUFReader(theirs).tensors}
    found = {t.name: bytes(t.data) for t in gguf.GGUFReader(stories.float32).tensors}
    assert found == wanted


def test_the_measure_sees_a_wrong_model(stories, report_run, run_llama):
    """Negative control: the untrained rounding of the same model is another model, and the figures say so."""
    other = next(report_run.glob("*-Q4_0-ggml.gguf"))
    theirs = llama_perplexity(run_llama, other, stories.base, stories.text, stories.ctx, *EXACT)
    assert theirs["mean_kld"] > 0.01, theirs


def test_nibble_reads_the_base_that_llama_perplexity_writes(stories, run_nibble, llama_bin, llama_env, tmp_path):
    base = tmp_path / "llama.kld"
    subprocess.run(
        [llama_bin("llama-perplexity"), "-m", stories.float32, "-f", stories.text, "-c", str(stories.ctx), "-b",
         str(stories.ctx), "--chunks", "8", "-t", "2", "--kl-divergence-base", base, *EXACT],
        env=llama_env, check=True, capture_output=True, timeout=300, stdin=subprocess.DEVNULL,
    )
    result = run_nibble(
        "perplexity", stories.exported, "--kl-divergence-base", base, "--kl-divergence", "--json"
    )
    assert result.returncode == 0, result.stderr
    assert abs(json.loads(result.stdout)["mean_kld"]) < 1e-4
