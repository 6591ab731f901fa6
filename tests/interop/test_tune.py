"""nibble tune on stories260K: the winner is the one that trains best, and a second call takes what the first found."""

import json
import signal
import subprocess
import time

import pytest
from conftest import hear_signals

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(stories260k, shared, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {stories260k}\noutput: {tmp_path / 'run'}\nquant: {{type: Q2_0}}\n"
        f"data: {{files: [{shared / 'text' / 'tinystories' / 'train_v1_first2MiB.txt'}], sequence_length: 64, max_bytes: 100000}}\n"
        "optimizer: {relative: true}\nbatch_tokens: 256\nmax_tokens: 6144\nevaluate_every: 4\n"
    )
    return path


def tune(run_nibble, config, *arguments):
    result = run_nibble("tune", config, "--output", config.with_name("tuned"), "--json", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_best_rate_wins(run_nibble, config):
    """A rate of 1e-7 trains nothing, one of 4e-3 does."""
    answer = tune(run_nibble, config, "--try", "optimizer.learning_rate=1e-7,4e-3", "--try", "optimizer.scale_learning_rate=1e-7", "--seeds", 2)
    assert answer["best"] == "optimizer.learning_rate=4e-3, optimizer.scale_learning_rate=1e-7"
    still, trained = answer["trials"]
    assert set(trained["losses"]) == {"1", "2"} and trained["mean"] < still["mean"]
    for seed, loss in trained["losses"].items():
        metrics = (config.with_name("tuned") / f"optimizer.learning_rate=4e-3__optimizer.scale_learning_rate=1e-7-seed{seed}" / "metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert loss == pytest.approx(min(row["held_out_loss"] for row in rows if row["step"] > 0 and "held_out_loss" in row))
    # The winner's configuration is one that runs, to the trial's own folder's result.
    result = run_nibble("train", answer["config"], "--set", "seed=1")
    assert result.returncode == 0, result.stderr
    assert "learning_rate: 0.004" in (config.with_name("run") / "config.yaml").read_text()

    # Again: nothing is trained anew.
    begun = time.monotonic()
    assert tune(run_nibble, config, "--try", "optimizer.learning_rate=1e-7,4e-3", "--try", "optimizer.scale_learning_rate=1e-7", "--seeds", 2) == answer
    assert time.monotonic() - begun < 2


def test_results_of_another_configuration_are_not_taken(run_nibble, config):
    words = ["tune", config, "--output", config.with_name("tuned"), "--try", "optimizer.learning_rate=1e-3,4e-3", "--seeds", "1"]
    assert run_nibble(*words, "--set", "max_tokens=1024").returncode == 0
    result = run_nibble(*words, "--set", "max_tokens=2048")
    assert result.returncode == 2 and "was made with another configuration; give another --output" in result.stderr


def test_a_hopeless_trial_gets_no_further_seed(run_nibble, config):
    answer = tune(run_nibble, config, "--try", "optimizer.learning_rate=4e-3,0.9", "--seeds", 2)
    good, bad = answer["trials"]
    assert answer["best"] == "optimizer.learning_rate=4e-3"
    assert bad["left"] in ("stopped", "far behind the best") and len(bad["losses"]) < 2
    assert len(good["losses"]) == 2


def test_paired_differences(run_nibble, config):
    """By hand, from the losses that it reports."""
    answer = tune(run_nibble, config, "--try", "optimizer.learning_rate=3e-3,4e-3", "--seeds", 3, "--set", "max_tokens=2048")
    other = next(trial for trial in answer["trials"] if trial["settings"] != answer["best"])
    best = next(trial for trial in answer["trials"] if trial["settings"] == answer["best"])
    differences = [other["losses"][seed] - best["losses"][seed] for seed in ("1", "2", "3")]
    mean = sum(differences) / 3
    deviation = (sum((each - mean) ** 2 for each in differences) / 2) ** 0.5
    assert other["to_best"] == pytest.approx(mean)
    assert other["margin"] == pytest.approx(4.303 * deviation / 3**0.5)


def test_a_signal_stops_it_and_the_same_command_goes_on(nibble, run_nibble, config):
    words = ["tune", config, "--output", config.with_name("tuned"), "--try", "optimizer.learning_rate=1e-3,4e-3", "--seeds", "1",
             "--set", "max_tokens=20480", "--json"]  # fmt: skip
    process = subprocess.Popen([str(nibble), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals)
    first = config.with_name("tuned") / "optimizer.learning_rate=1e-3-seed1"
    while not (first / "metrics.jsonl").exists() or len((first / "metrics.jsonl").read_text().splitlines()) < 5:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped; the same command goes on" in errors
    assert (first / "checkpoints" / "last.safetensors").exists()
    result = run_nibble(*words)
    assert result.returncode == 0, result.stderr
    assert all(len(trial["losses"]) == 1 for trial in json.loads(result.stdout)["trials"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to compare: give --try"),
        (["--try", "optimizer.learning_rate=1e-3"], "there is one trial"),
        (["--try", "optimizer.learning_rate"], "--try wants KEY=VALUE,VALUE, found 'optimizer.learning_rate'"),
        (["--try", "optimizer.learning_rate=1e-3,,2e-3"], "a value is empty"),
        (["--try", "optimizer.lerning_rate=1e-3,2e-3"], "optimizer.lerning_rate: unknown key (did you mean 'learning_rate'?)"),
        (["--methods", "relative,lsqq"], "quant.estimator"),
        (["--methods", "relative,lsq", "--seeds", "0"], "--seeds wants 1 to 10, found 0"),
        (["--methods", "relative,lsq", "--set", "data.held_out=0"], "data.held_out is 0: trials are compared by their held-out losses"),
    ],
)  # fmt: skip
def test_refusals(run_nibble, config, arguments, message):
    result = run_nibble("tune", config, "--output", config.with_name("tuned"), *arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert not config.with_name("tuned").exists()
