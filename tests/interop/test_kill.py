"""kill -9 at random moments: no file is ever broken, what is left over does not pile up, and who goes on reaches the same
bytes as who was never killed.

NIBBLE_KILLS sets how often (10 without it; 100 takes two minutes), NIBBLE_KILL_SEED the moments.
"""

import json
import os
import pathlib
import random
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "stories260k_q4_0.yaml"
pytestmark = pytest.mark.usefixtures("one_thread")
KILLS = int(os.environ.get("NIBBLE_KILLS", "10"))
# Small steps with a checkpoint after each: most moments lie in or near a write.
TRAIN = [
    "train", CONFIG, "--set", "output=run", "--set", "data.max_bytes=20000", "--set", "data.sequence_length=64",
    "--set", "batch_tokens=128", "--set", "max_tokens=2560", "--set", "evaluate_every=2", "--set", "checkpoint_every=1",
]


@pytest.fixture
def moments():
    seed = int(os.environ.get("NIBBLE_KILL_SEED", random.randrange(1 << 30)))
    print(f"NIBBLE_KILL_SEED={seed}")  # pytest shows it when the test fails
    return random.Random(seed)


@pytest.fixture
def run_and_kill(nibble):
    """run(seconds, *arguments) -> (exit status, stderr) of a process that is killed then, unless it ended before."""

    def run(seconds, *arguments, cwd):
        process = subprocess.Popen(
            [str(nibble), *map(str, arguments)], cwd=cwd, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait(), process.stderr.read()

    return run


def timed(run_nibble, *arguments, cwd):
    start = time.monotonic()
    result = run_nibble(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return time.monotonic() - start


def unfinished(folder):
    return list(folder.rglob("*.tmp.*"))


def contents(checkpoint):
    """All that a checkpoint holds but how long it took."""
    from safetensors import safe_open

    with safe_open(checkpoint, "np") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys() if name != "checksum"}
        metadata = dict(file.metadata())
    state = json.loads(metadata.pop("nibble.state"))
    del state["seconds"]
    return tensors, metadata, state


def end_of(run, run_nibble):
    """All that a finished run left and exports."""
    out = run.parent / "out.gguf"
    result = run_nibble("export", "run", out, cwd=run.parent)
    assert result.returncode == 0, result.stderr
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    checkpoints = {path.name: contents(path) for path in (run / "checkpoints").iterdir()}
    losses = [(line["step"], line.get("loss")) for line in map(json.loads, open(run / "metrics.jsonl"))]
    return files, checkpoints, losses, out.read_bytes()


def check_whole(run):
    """What a killed run left can be read, every file of it."""
    assert len(unfinished(run)) <= 1, "the unfinished files of killed runs pile up"
    if (run / "plan.json").exists():
        json.loads((run / "plan.json").read_text())
    for checkpoint in run.glob("checkpoints/*.safetensors"):
        contents(checkpoint)
    if (run / "metrics.jsonl").exists():
        for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]:
            json.loads(line)


def test_training_survives_kills(run_nibble, run_and_kill, stories260k, moments, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    seconds = timed(run_nibble, *TRAIN, cwd=whole)
    wanted = end_of(whole / "run", run_nibble)

    kills = ends = 0
    while kills < KILLS:
        status, said = run_and_kill(moments.uniform(0, seconds), *TRAIN, "--resume", cwd=killed)
        assert status in (0, -9) and "damaged" not in said, said
        check_whole(killed / "run")
        kills += status != 0
        if status == 0:
            assert end_of(killed / "run", run_nibble) == wanted
            shutil.rmtree(killed / "run")
            ends += 1
    timed(run_nibble, *TRAIN, "--resume", cwd=killed)
    assert not unfinished(killed)
    assert end_of(killed / "run", run_nibble) == wanted
    print(f"{kills} processes killed, {ends + 1} runs reached their end")


def test_export_survives_kills(run_nibble, run_and_kill, stories260k, moments, tmp_path):
    result = run_nibble(*TRAIN, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "out.gguf"
    seconds = timed(run_nibble, "export", "run", out, cwd=tmp_path)
    wanted = out.read_bytes()
    kills = 0
    while kills < KILLS:
        out.write_bytes(b"old")
        status, _ = run_and_kill(moments.uniform(0, seconds), "export", "run", out, cwd=tmp_path)
        assert out.read_bytes() in (b"old", wanted)
        assert status == -9 or (status == 0 and out.read_bytes() == wanted)
        kills += status != 0
        assert len(unfinished(folder)) <= 1
    timed(run_nibble, "export", "run", out, cwd=tmp_path)
    assert out.read_bytes() == wanted and list(folder.iterdir()) == [out]
