"""Ctrl-C and SIGTERM: a training run writes a checkpoint, says how to go on, and going on ends where it would have ended."""

import json
import pathlib
import re
import signal
import subprocess
import time

import pytest

from conftest import hear_signals

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "stories260k_q4_0.yaml"
pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = [
    CONFIG, "--set", "output=run", "--set", "name=it's quoted", "--set", "max_tokens=5120",
    "--set", "batch_tokens=256", "--set", "evaluate_every=5", "--set", "baselines=[ggml]", "--set", "compare.types=[]",
    "--set", "compare.chunks=2", "--set", "prompts=[]",
]


@pytest.fixture
def start(nibble, stories260k, tmp_path):
    """start(folder, *arguments) -> a process in a folder of its own, which hears every signal whoever started the tests."""
    started = []

    def run(name, *arguments):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [str(nibble), *map(str, arguments)], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=hear_signals,
        )
        started.append(process)
        return process, folder / "run"

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for_lines(process, run, count):
    path = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def export(run_nibble, run):
    out = run.parent / "out.gguf"
    result = run_nibble("export", "run", out, cwd=run.parent)
    assert result.returncode == 0, result.stderr
    return out.read_bytes()


def stop(process, run, number):
    """Sends the signal in the middle of the training; the line that goes on, from what is said last."""
    wait_for_lines(process, run, 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert out == ""
    last = err.splitlines()[-1]
    found = re.fullmatch(r"nibble: (?:train|run): stopped after step (\d+); go on with: (.*)", last)
    assert found, err
    assert 3 <= int(found[1]) < 20
    assert not list(run.rglob("*.tmp.*"))
    return found[2]


def go_on(line, folder):
    result = subprocess.run(line, shell=True, cwd=folder, text=True, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "checkpoints/" not in result.stderr  # no warning of one
    return result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_training_stops_and_goes_on(start, run_nibble, number):
    process, whole = start("whole", "train", *SHORT)
    assert process.wait(timeout=120) == 0
    process, run = start("stopped", "train", *SHORT)
    line = stop(process, run, number)
    go_on(line, run.parent)
    assert export(run_nibble, run) == export(run_nibble, whole)
    # Once more: there is nothing left to do, which is no failure.
    again = go_on(line, run.parent)
    assert "finished run" in again.stderr


def test_a_whole_run_stops_and_goes_on(start, run_nibble):
    process, whole = start("whole", "run", *SHORT)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    process, run = start("stopped", "run", *SHORT)
    line = stop(process, run, signal.SIGINT)
    assert not (run / "report").exists()
    go_on(line, run.parent)
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    for name in names:
        if name.endswith(".gguf") or name in ("plan.json", "config.yaml"):
            assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(21))


def test_a_finished_run_can_be_compared_and_reported_anew(start):
    process, run = start("run", "run", *SHORT)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    written = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()}
    process, _ = start("run", "run", *SHORT, "--set", "compare.chunks=3", "--resume")
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()} == written
    assert "chunks: 3" in (run / "config.yaml").read_text()
    assert (run / "report" / "index.html").exists()


def test_a_second_signal_ends_at_once(start):
    # A step of 32,768 tokens takes long enough for a second signal to come before its end.
    process, run = start("run", "train", *SHORT, "--set", "batch_tokens=32768", "--set", "micro_batch_tokens=1024",
                         "--set", "max_tokens=327680")
    wait_for_lines(process, run, 1)
    time.sleep(0.2)  # the line is written a moment before signals are listened to
    process.send_signal(signal.SIGINT)
    said = ""
    while "stopping" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == -signal.SIGINT
    assert not list(run.rglob("*.tmp.*"))
    assert not list((run / "checkpoints").iterdir())
