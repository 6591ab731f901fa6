"""The control of a run, which is the same training without quantization, and the matrix of what a model was trained for
and is exported as."""

import json
import pathlib
import shlex
import signal
import subprocess
import time

import pytest

from conftest import hear_signals

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "stories260k_q4_0.yaml"
pytestmark = pytest.mark.usefixtures("one_thread")
CONTROL, CONTROL_PTQ = "control (trained, not quantized)", "control, then PTQ (search)"


def settings(output, *more):
    values = [f"output={output}", "loss.kind=ce", "control=true", "max_tokens=20480", "baselines=[search]",
              "compare.types=[]", "compare.chunks=4", "prompts=[]", *more]
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def controlled(run_nibble, stories260k, tmp_path_factory):
    """A run with a control and a matrix: its folder and what --json said."""
    folder = tmp_path_factory.mktemp("control") / "run"
    result = run_nibble("run", CONFIG, *settings(folder, "compare.matrix=[Q4_0, Q8_0, Q2_0]"), "--json", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_the_control_and_its_ptq_are_rows(controlled):
    folder, found = controlled
    rows = {model["name"]: model for model in found["models"]}
    assert rows[CONTROL]["bpw"] == 32
    assert rows[CONTROL_PTQ]["bpw"] == rows["Q4_0 trained"]["bpw"]
    assert found["warnings"] == []  # that training moved the norms is none
    # Cross-entropy moves it away from the original.
    assert rows[CONTROL]["mean_kld"] > 1e-3
    beside = {model["name"]: model for model in found["control"]["models"]}
    assert found["control"]["base"] == CONTROL
    assert set(beside) == {found["base"], "Q4_0 search", "Q4_0 trained", CONTROL_PTQ}
    # Rounding the control moves it less far from itself than the whole training did from the original's PTQ.
    assert beside[CONTROL_PTQ]["mean_kld"] < beside["Q4_0 search"]["mean_kld"]


def test_the_control_took_the_same_steps(controlled):
    folder, _ = controlled

    def steps(path):
        return [(line["step"], line["tokens"], line.get("learning_rate")) for line in map(json.loads, path.open())]

    assert steps(folder / "control" / "metrics.jsonl") == steps(folder / "metrics.jsonl")


def test_the_control_is_a_run_of_its_own(controlled, run_nibble, tmp_path):
    folder, _ = controlled
    out = tmp_path / "control.gguf"
    result = run_nibble("export", folder / "control", out, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert out.read_bytes() == next((folder / "control").glob("*-control-F32.gguf")).read_bytes()


def test_the_matrix_has_every_state_in_every_type(controlled):
    folder, found = controlled
    matrix = found["matrix"]
    assert matrix["types"] == ["Q4_0", "Q8_0", "Q2_0"]
    kld = {row["state"]: dict(zip(matrix["types"], row["mean_kld"])) for row in matrix["rows"]}
    assert list(kld)[1:] == ["Q4_0 trained, masters", "Q4_0 trained", CONTROL]
    rows = {model["name"]: model["mean_kld"] for model in found["models"]}
    original = kld[list(kld)[0]]
    assert original["Q4_0"] == pytest.approx(rows["Q4_0 search"], rel=1e-6)  # the same file
    assert kld[CONTROL]["Q4_0"] == pytest.approx(rows[CONTROL_PTQ], rel=1e-6)
    assert original["Q8_0"] < original["Q4_0"] < original["Q2_0"]
    # What was trained for a grid of 16 levels lies on it: another 8 bits change next to nothing.
    assert kld["Q4_0 trained"]["Q8_0"] == pytest.approx(rows["Q4_0 trained"], rel=0.05)
    assert not (folder / "matrix").exists()


def test_the_page_shows_both(controlled):
    folder, _ = controlled
    page = (folder / "report" / "index.html").read_text()
    for title in ("Against the same training without quantization", "Trained for one type, exported as another"):
        assert f"<h2>{title}</h2>" in page, title


def test_a_control_that_is_the_original_is_said_so(run_nibble, stories260k, tmp_path):
    folder = tmp_path / "run"
    result = run_nibble("run", CONFIG, *settings(folder, "loss.kind=kl", "max_tokens=4096"), "--json", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert "the control is the original itself" in found["control"]["note"]
    assert not (folder / "control").exists()
    assert CONTROL not in {model["name"] for model in found["models"]}
    assert found["control"]["note"] in (folder / "report" / "index.html").read_text()


def test_a_stopped_control_is_gone_on_with(controlled, nibble, tmp_path):
    import gguf

    whole, _ = controlled
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [str(nibble), "run", str(CONFIG), *settings(folder)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=hear_signals,
    )
    metrics = folder / "control" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    last = err.splitlines()[-1]
    assert last.startswith("nibble: run: control: stopped after step "), err
    result = subprocess.run(shlex.split(last.split("go on with: ")[1]), cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    for pattern in ("control/*-control-F32.gguf", "control/*-control-Q4_0-search.gguf", "*-Q4_0-trained.gguf"):
        found, wanted = next(folder.glob(pattern)), next(whole.glob(pattern))
        # Their headers hold the hash of the configuration, which names the folder.
        data = [{t.name: bytes(t.data) for t in gguf.GGUFReader(path).tensors} for path in (found, wanted)]
        assert data[0] == data[1], pattern
