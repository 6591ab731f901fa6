"""Activations rounded as llama.cpp's CPU backend rounds them: nibble then measures a file as llama.cpp runs it."""

import json
import subprocess

import numpy as np
import pytest
from generated_llama import write_llama
from test_perplexity import figures, llama_perplexity, number_after  # noqa: F401 (a fixture among them)


@pytest.fixture(scope="session")
def wide_f32(tmp_path_factory, stories260k):
    """256 divides its rows, so that K-quants are what they are called."""
    path = tmp_path_factory.mktemp("wide") / "f32.gguf"
    write_llama(path, stories260k, width=256, wide=512, layers=2, heads=4, context=512, dtype=np.float32)
    return path


@pytest.mark.parametrize("source,file_type", [("stories260k", "Q8_0"), ("stories260k", "F16"), ("wide_f32", "Q6_K")])
def test_what_llama_cpp_runs(source, file_type, request, run_nibble, llama_perplexity, llama_bin, llama_env, shared, tmp_path):
    """Types whose weights lose little, so that the activations are a good part of the KL divergence."""
    original, quantized, base = request.getfixturevalue(source), tmp_path / "quantized.gguf", tmp_path / "base.kld"
    command = [llama_bin("llama-quantize"), original, quantized, file_type]
    subprocess.run(command, env=llama_env, check=True, capture_output=True)
    text = shared / "text" / "tinystories" / "valid_v1_nosep.txt"
    llama_perplexity("-m", original, "-f", text, "-c", 256, "--chunks", 40, "--kl-divergence-base", base)
    printed = llama_perplexity("-m", quantized, "-c", 256, "--kl-divergence", "--kl-divergence-base", base)
    wanted, _ = number_after("Mean    KLD", printed)

    def found(activations):
        arguments = ["--kl-divergence", "--kl-divergence-base", base, "--activations", activations]
        return figures(run_nibble, quantized, *arguments)["mean_kld"]

    plain, rounded = found("none"), found("llama_cpu")
    # The same noise on other tokens: a sum in another order tips codes over. Half of the standard error of a mean over
    # 5,080 tokens is about 1 %; llama-perplexity prints six digits.
    assert rounded == pytest.approx(wanted, rel=0.02, abs=1e-6), plain
    if file_type != "F16":
        assert plain < 0.9 * wanted


def test_a_run_is_measured_as_it_was_trained(run_nibble, stories260k, shared, tmp_path):
    config = tmp_path / "run.yaml"
    text = shared / "text" / "tinystories" / "valid_v1_nosep.txt"
    config.write_text(f"""
model: {stories260k}
output: {tmp_path}/run
quant: {{type: Q4_0, activations: llama_cpu}}
data: {{files: [{text}], sequence_length: 64, max_bytes: 40000}}
batch_tokens: 256
max_tokens: 1024
baselines: [ggml]
compare: {{text: {text}, ctx: 64, chunks: 8}}
""")
    result = run_nibble("run", config)
    assert result.returncode == 0, result.stderr
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert comparison["activations"] == "llama_cpu"
    assert "CPU backend" in (tmp_path / "run" / "report" / "index.html").read_text()
    again = run_nibble(
        "compare", *[m["path"] for m in comparison["models"]], "--base", stories260k, "--text", text, "--ctx", 64,
        "--chunks", 8, "--activations", "llama_cpu", "--json",
    )
    found = json.loads(again.stdout)["models"]
    assert [m["mean_kld"] for m in found] == pytest.approx([m["mean_kld"] for m in comparison["models"]], rel=1e-6)


def test_bfloat16_is_refused(run_nibble, stories260k, shared, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"""
model: {stories260k}
output: {tmp_path}/run
quant: {{type: Q4_0, activations: llama_cpu}}
data: {{files: [{shared}/text/tinystories/valid_v1_nosep.txt]}}
dtype: auto
""")
    result = run_nibble("train", config)
    assert result.returncode == 2
    assert "run.yaml:6:8: dtype: wants float32 where quant.activations is llama_cpu, found auto" in result.stderr
