"""Perplexity and KL divergence: the figures of nibble and of the real llama-perplexity, and base files exchanged."""

import json
import re
import subprocess

import pytest

F32_CACHE = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]


def texts(shared):
    return {
        "stories260k": shared / "text" / "tinystories" / "valid_v1_nosep.txt",
        "smollm2": shared / "text" / "wikitext-2-raw" / "wiki.test.raw",
    }


@pytest.fixture(scope="session")
def llama_perplexity(run_llama):
    def run(*arguments):
        until = r"Final estimate: PPL = \S+ \+/- \S+\n|Same top p: .*%"
        return "".join(run_llama("llama-perplexity", *arguments, *F32_CACHE, until=until))

    return run


def number_after(label, text):
    """(value, error) of a line "label value ± error", percentages as fractions."""
    match = re.search(re.escape(label) + r"\s*[:=]\s*(-?[\d.]+)(%?)(?:\s*(?:±|\+/-)\s*([\d.]+))?\s*(%?)", text)
    assert match, (label, text[-3000:])
    scale = 0.01 if match[2] or match[4] else 1.0
    return float(match[1]) * scale, float(match[3] or 0) * scale


def figures(run_nibble, *arguments):
    result = run_nibble("perplexity", *arguments, "--json", timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def stories_q4_0(stories260k, llama_bin, llama_env, tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "q4_0.gguf"
    subprocess.run(
        [llama_bin("llama-quantize"), stories260k, path, "Q4_0"], env=llama_env, check=True, capture_output=True
    )
    return path


@pytest.fixture(scope="session")
def dequantized(stories_q4_0, llama_bin, llama_env):
    """The Q4_0 file's weights as float32: llama.cpp rounds activations for the quantized file itself."""
    path = stories_q4_0.with_name("q4_0-as-f32.gguf")
    subprocess.run(
        [llama_bin("llama-quantize"), "--allow-requantize", stories_q4_0, path, "F32"],
        env=llama_env, check=True, capture_output=True,
    )
    return path


def test_perplexity_of_stories260k(run_nibble, llama_perplexity, stories260k, shared):
    text = texts(shared)["stories260k"]
    wanted = number_after("PPL", llama_perplexity("-m", stories260k, "-f", text, "-c", 512, "--chunks", 40))
    found = figures(run_nibble, stories260k, text, "--chunks", 40)
    # llama-perplexity prints four and five digits.
    assert found["ppl"] == pytest.approx(wanted[0], abs=1.5e-4)
    assert found["ppl_err"] == pytest.approx(wanted[1], abs=1.5e-5)
    assert found["tokens"] == 40 * 255


def test_perplexity_of_smollm2(run_nibble, smollm2_f32, shared):
    found = figures(run_nibble, smollm2_f32, texts(shared)["smollm2"], "--ctx", 512, "--chunks", 16)
    # What llama-perplexity gives for this file and text; it keeps keys and values in float16.
    assert found["ppl"] == pytest.approx(29.2459, rel=1e-3)


def test_llama_perplexity_reads_our_base(run_nibble, llama_perplexity, stories260k, dequantized, shared, tmp_path):
    """The same comparison in both programs, each with a base that nibble wrote."""
    base = tmp_path / "base.kld"
    figures(run_nibble, stories260k, texts(shared)["stories260k"], "--chunks", 20, "--kl-divergence-base", base)
    text = llama_perplexity("-m", dequantized, "-c", 512, "--kl-divergence", "--kl-divergence-base", base)
    assert_same_figures(figures(run_nibble, dequantized, "--kl-divergence", "--kl-divergence-base", base), text)


def test_we_read_llama_perplexitys_base(run_nibble, llama_perplexity, stories260k, dequantized, shared, tmp_path):
    base, text = tmp_path / "base.kld", texts(shared)["stories260k"]
    llama_perplexity("-m", stories260k, "-f", text, "-c", 512, "--chunks", 20, "--kl-divergence-base", base)
    wanted = llama_perplexity("-m", dequantized, "-c", 512, "--kl-divergence", "--kl-divergence-base", base)
    # Naming the text checks that its tokens are those of the base.
    found = figures(run_nibble, dequantized, text, "--kl-divergence", "--kl-divergence-base", base)
    assert_same_figures(found, wanted)


def assert_same_figures(found, text):
    # Printed digits, and the float32 difference between two forward passes (1e-4 nats on single tokens).
    for key, label, tolerance in [
        ("ppl", "Mean PPL(Q)", 2e-4), ("base_ppl", "Mean PPL(base)", 1e-5),
        ("ln_ppl_ratio", "Mean ln(PPL(Q)/PPL(base))", 1e-5), ("mean_kld", "Mean    KLD", 1e-5),
        ("rms_dp", "RMS Δp", 2e-5), ("same_top", "Same top p", 1e-3),
    ]:
        value, error = number_after(label, text)
        assert found[key] == pytest.approx(value, abs=tolerance), key
        assert found[key + "_err"] == pytest.approx(error, abs=tolerance), key
    for key, label, tolerance in [
        ("median_kld", "Median  KLD", 2e-5), ("p999_kld", "99.9%   KLD", 1e-3), ("max_kld", "Maximum KLD", 1e-3),
    ]:
        assert found[key] == pytest.approx(number_after(label, text)[0], abs=tolerance), key
    assert found["mean_kld"] > 0.01, "the two models must differ for this to say anything"


def test_compare_agrees_with_perplexity(run_nibble, stories260k, stories_q4_0, dequantized, shared, tmp_path):
    text, base = texts(shared)["stories260k"], tmp_path / "base.kld"
    result = run_nibble(
        "compare", stories_q4_0, dequantized, "--base", stories260k, "--text", text, "--chunks", 20, "--json"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    plain = figures(run_nibble, stories260k, text, "--chunks", 20, "--kl-divergence-base", base)
    wanted = figures(run_nibble, stories_q4_0, "--kl-divergence", "--kl-divergence-base", base)
    assert found["base_ppl"] == pytest.approx(plain["ppl"], rel=1e-9)
    assert found["base_ppl_16bit"] == pytest.approx(wanted["base_ppl"], rel=1e-9)
    quantized, same_weights = found["models"]
    for key in ["ppl", "mean_kld", "p999_kld", "rms_dp", "same_top", "ln_ppl_ratio", "ln_ppl_ratio_err"]:
        assert quantized[key] == pytest.approx(wanted[key], rel=1e-6, abs=1e-9), key
        assert same_weights[key] == pytest.approx(quantized[key], rel=1e-6, abs=1e-9), key
    assert quantized["bytes"] == stories_q4_0.stat().st_size
    assert quantized["name"] == stories_q4_0.name
    assert found["differences"][0]["mean_kld"] == pytest.approx(0, abs=1e-9)


def test_text_that_is_too_short(run_nibble, stories260k, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Once upon a time.")
    result = run_nibble("perplexity", stories260k, text)
    assert result.returncode == 1
    assert re.search(r"short\.txt: the text has \d+ tokens; a context of 512 needs at least 1024", result.stderr)


def test_base_of_another_text_or_model(run_nibble, stories260k, shared, tmp_path):
    text, base = texts(shared)["stories260k"], tmp_path / "base.kld"
    figures(run_nibble, stories260k, text, "--chunks", 2, "--kl-divergence-base", base)
    other = tmp_path / "other.txt"
    other.write_text("Something else. " * 2000)
    result = run_nibble("perplexity", stories260k, other, "--kl-divergence", "--kl-divergence-base", base)
    assert result.returncode == 1 and "their tokens differ" in result.stderr
    base.write_bytes(base.read_bytes()[:-7])
    result = run_nibble("perplexity", stories260k, "--kl-divergence", "--kl-divergence-base", base)
    assert result.returncode == 1 and "bytes" in result.stderr


@pytest.mark.parametrize("arguments", [
    ["perplexity"], ["perplexity", "MODEL"], ["perplexity", "MODEL", "TEXT", "--kl-divergence"],
    ["perplexity", "MODEL", "TEXT", "--ctx", "many"], ["perplexity", "MODEL", "TEXT", "--perplexed"],
    ["perplexity", "MODEL", "TEXT", "--kl-divergence", "--kl-divergence-base", "B", "--ctx", "64"],
    ["compare"], ["compare", "MODEL"], ["compare", "MODEL", "--base", "MODEL"],
])
def test_usage_errors(run_nibble, arguments):
    result = run_nibble(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
