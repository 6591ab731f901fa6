"""A training run's peak memory is what it said before it began, and a run that cannot fit says so at once."""

import json
import os
import re
import resource
import subprocess

import pytest

from conftest import ROOT


@pytest.fixture
def train(run_nibble, smollm2_q4_1, shared, tmp_path):
    """train(tokens, *settings): one step of that many tokens."""

    def run(tokens, *settings, **options):
        sizes = [f"{name}={tokens}" for name in ("batch_tokens", "micro_batch_tokens", "max_tokens")]
        fast = ["quant.initial=rtn", "data.held_out=0.001", "data.max_bytes=300000"]
        files = [f"output={tmp_path / 'run'}", f"model={smollm2_q4_1}"]
        arguments = [item for setting in files + fast + sizes + list(settings) for item in ("--set", setting)]
        config = ROOT / "configs" / "smollm2_q4_0_wikitext.yaml"
        return run_nibble("train", config, "--json", *arguments, cwd=ROOT, **options)

    return run


@pytest.mark.parametrize(
    "tokens, settings",
    [(512, ["dtype=float32"]), (1024, ["dtype=bfloat16"]), (1024, ["dtype=float32", "activation_checkpointing=true"]),
     (512, ["dtype=float32", "blockwise.tokens=512", "blockwise.batch_tokens=512"]),
     (512, ["dtype=float32", "quant.weights=lora"]), (512, ["dtype=float32", "quant.weights=rounding"]),
     (512, ["dtype=float32", "loss.teacher_top_k=64"])],
)
def test_the_prediction_is_within_a_tenth(train, tokens, settings):
    result = train(tokens, *settings)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["predicted_bytes"] == pytest.approx(report["peak_bytes"], rel=0.1)


SCALES = """
model: {model}
quant: {{weights: {weights}, initial: rtn}}
data: {{files: [{text}], sequence_length: 512, max_bytes: 300000, held_out: 0.001}}
batch_tokens: 1024
micro_batch_tokens: 512
activation_checkpointing: true
max_tokens: 2048
evaluate_every: 0
dtype: float32
output: {output}
"""


def test_scales_alone_take_four_tenths_of_the_memory(run_nibble, smollm2_q4_1, shared, tmp_path):
    peak = {}
    for name in ("full", "scales", "streamed"):
        config = tmp_path / f"{name}.yaml"
        config.write_text(SCALES.format(model=smollm2_q4_1, weights="full" if name == "full" else "scales", output=tmp_path / name,
                                        text=shared / "text" / "wikitext-2-raw" / "wiki.valid.raw"))
        result = run_nibble("train", config, "--json", "--set", f"stream_teacher={str(name == 'streamed').lower()}", cwd=ROOT)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        peak[name] = report["peak_bytes"]
        assert report["predicted_bytes"] == pytest.approx(report["peak_bytes"], rel=0.1), name
    # 0.37 and 0.27 were measured, of which libraries and text are 0.04; the activations of more positions are the same in all.
    assert peak["scales"] <= 0.4 * peak["full"] and peak["streamed"] <= 0.3 * peak["full"], peak


def peak_of(*command):
    """Bytes of memory at the peak of a command that succeeds."""
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, command
    return 1024 * usage.ru_maxrss


def test_block_by_block_depth_costs_nothing(run_nibble, nibble, smollm2_q4_1, shared, tmp_path):
    few = tmp_path / "few.gguf"
    result = run_nibble("quantize", smollm2_q4_1, few, "COPY", "--prune-layers", ",".join(map(str, range(4, 30))))
    assert result.returncode == 0, result.stderr
    calibration = ["--calibration", shared / "text" / "wikitext-2-raw" / "wiki.valid.raw", "--calibration-tokens", 1024]
    peaks = [peak_of(nibble, "quantize", model, tmp_path / "out.gguf", "Q4_0", "--allow-requantize", "--method", "blockwise",
                     *calibration) for model in (few, smollm2_q4_1)]
    layer = 4 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)  # bytes of a layer's matrices in float32
    assert abs(peaks[1] - peaks[0]) < layer, peaks


def test_a_run_that_cannot_fit_names_settings_that_do(train):
    # Of address space, in which more lies than is predicted: libraries' and the heap's unused parts, and the best checkpoint,
    # which is mapped at the end. Of less than 5.7 GB, which the first run wants, as much as can be.
    limit = int(5.5 * 2**30)

    def limited(*settings):
        return train(
            2048, "dtype=float32", *settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        )

    result = limited()
    assert result.returncode == 1 and result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    found = re.search(r"the run needs about [\d.]+ GB of memory .* it would fit with (.*): ", line)
    assert found, line
    fitting = limited(*[setting.replace(": ", "=") for setting in found[1].split(", ")])
    assert fitting.returncode == 0, fitting.stderr
