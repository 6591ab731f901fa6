"""A training run's peak memory is what it said before it began, and a run that cannot fit says so at once."""

import json
import re
import resource

import pytest

from conftest import ROOT


@pytest.fixture
def train(run_nibble, smollm2_q4_1, shared, tmp_path):
    def run(*settings, **options):
        arguments = [item for setting in settings for item in ("--set", setting)]
        return run_nibble(
            "train", ROOT / "configs" / "smollm2_q4_0_wikitext.yaml", "--json", "--set", f"output={tmp_path / 'run'}",
            "--set", f"model={smollm2_q4_1}", "--set", "quant.initial=rtn", "--set", "data.held_out=0.001",
            "--set", "batch_tokens=2048", "--set", "micro_batch_tokens=2048", "--set", "max_tokens=4096", *arguments,
            cwd=ROOT, **options,
        )

    return run


@pytest.mark.parametrize(
    "settings",
    [
        ["dtype=float32"],
        ["dtype=bfloat16"],
        ["dtype=float32", "activation_checkpointing=true"],
        ["dtype=float32", "micro_batch_tokens=512"],
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_prediction_is_within_a_tenth(train, settings):
    result = train(*settings)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["predicted_bytes"] == pytest.approx(report["peak_bytes"], rel=0.1)


def test_a_run_that_cannot_fit_names_settings_that_do(train):
    def limited(*settings, limit):
        return train(*settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))

    limit = 5 << 30
    result = limited("dtype=float32", limit=limit)
    assert result.returncode == 1 and result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    found = re.search(r"the run needs about [\d.]+ GB of memory .* it would fit with (.*): ", line)
    assert found, line
    advised = [setting.replace(": ", "=") for setting in found[1].split(", ")]
    assert limited("dtype=float32", *advised, limit=limit).returncode == 0
