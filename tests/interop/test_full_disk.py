"""A full disk at each kind of write: one line that names the file, exit status 1, old files whole, nothing left over."""

import errno
import json
import pathlib
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "stories260k_q4_0.yaml"
pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 4096


class Disk:
    """A disk of 8 MB of its own, in memory."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self, left=0):
        """Until only `left` bytes, a number of pages, are free."""
        with open(self.folder / "filler", "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(file.seek(0, 2) - left)

    def files(self):
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file() and path.name != "filler"}


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {mounted.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def check_refused(result, path, reason="No space left on device"):
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("warning: ", "memory: "))]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("nibble: ") and lines[0].endswith(f": {reason}") and f" {path}: cannot " in lines[0]


def train(*settings):
    return ["train", CONFIG, "--set", "data.max_bytes=20000", "--set", "data.sequence_length=64", "--set", "batch_tokens=128",
            *(part for setting in settings for part in ("--set", setting))]


def test_quantize(disk, run_nibble, stories260k):
    out = disk.folder / "out.gguf"
    out.write_bytes(b"old")
    disk.fill(left=16 * PAGE)
    check_refused(run_nibble("quantize", "-q", stories260k, out, "Q4_0"), out)
    assert disk.files() == {out: b"old"}


def test_quantize_to_several_types(disk, run_nibble, stories260k):
    """All fit but the last: none appears."""
    old = disk.folder / "stories260K-f32.v3-Q4_0.gguf"
    old.write_bytes(b"old")
    disk.fill(left=150 * PAGE)
    result = run_nibble("quantize", "-q", stories260k, disk.folder, "--types", "Q4_0,Q2_0,F16")
    written = [path for path in disk.folder.iterdir() if path.name != "filler"]
    assert written == [old] and old.read_bytes() == b"old"
    (name,) = {name for name in ("Q4_0", "Q2_0", "F16") if f"-{name}.gguf: cannot " in result.stderr}
    check_refused(result, disk.folder / f"stories260K-f32.v3-{name}.gguf")


def test_export(disk, run_nibble, report_run):
    out = disk.folder / "out.gguf"
    out.write_bytes(b"old")
    disk.fill(left=16 * PAGE)
    check_refused(run_nibble("export", report_run, out, cwd=ROOT), out)
    assert disk.files() == {out: b"old"}


def test_base_file(disk, run_nibble, stories260k, shared):
    base = disk.folder / "base.kld"
    disk.fill(left=16 * PAGE)
    text = shared / "text" / "tinystories" / "valid_v1_nosep.txt"
    arguments = ["perplexity", stories260k, text, "--ctx", "256", "--chunks", "4", "--kl-divergence-base", base]
    check_refused(run_nibble(*arguments), base)
    assert disk.files() == {}


def test_configuration_and_plan(disk, run_nibble, stories260k):
    run = disk.folder / "run"
    disk.fill()
    check_refused(run_nibble(*train(f"output={run}")), run / "config.yaml")
    assert disk.files() == {}
    disk.fill(left=PAGE)
    check_refused(run_nibble(*train(f"output={run}")), run / "plan.json")
    assert list(disk.files()) == [run / "config.yaml"]


def test_checkpoints(disk, run_nibble, stories260k):
    run = disk.folder / "run"
    result = run_nibble(*train(f"output={run}", "max_tokens=256"))
    assert result.returncode == 0, result.stderr
    old = {path: data for path, data in disk.files().items() if path.suffix == ".safetensors"}
    assert {path.stem for path in old} == {"last", "best"}
    settings = [f"output={run}", "max_tokens=1280", "seed=2"]
    disk.fill(left=8 * PAGE)
    check_refused(run_nibble(*train(*settings)), run / "start.gguf")
    (disk.folder / "filler").unlink()
    disk.fill(left=128 * PAGE)  # enough for the model at step 0, not for a checkpoint
    check_refused(run_nibble(*train(*settings, "evaluate_every=2")), run / "checkpoints" / "best.safetensors")
    check_refused(run_nibble(*train(*settings, "evaluate_every=0", "checkpoint_every=2")),
                  run / "checkpoints" / "last.safetensors")
    assert {path: data for path, data in disk.files().items() if path.suffix == ".safetensors"} == old


def wait_until(process, happened):
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


def finish(process):
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_metrics(disk, nibble, stories260k):
    run = disk.folder / "run"
    metrics = run / "metrics.jsonl"
    arguments = train(f"output={run}", "max_tokens=128000", "evaluate_every=0", "checkpoint_every=0")
    process = subprocess.Popen([nibble, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(process, lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    disk.fill()
    check_refused(finish(process), metrics)
    assert metrics.read_text().endswith("}\n")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(steps[0], steps[0] + len(steps)))


def test_comparison_and_going_on(disk, nibble, run_nibble, stories260k):
    run = disk.folder / "run"
    arguments = ["run", CONFIG, "--set", f"output={run}", "--set", "max_tokens=4096", "--set", "baselines=[ggml]",
                 "--set", "compare.types=[Q8_0]", "--set", "prompts=[]"]
    process = subprocess.Popen([nibble, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(process, lambda: list(run.glob("*-Q8_0-ggml.gguf")))
    disk.fill()
    check_refused(finish(process), run / "comparison.json")
    assert not list(run.rglob("*.tmp.*"))
    (disk.folder / "filler").unlink()
    result = run_nibble(*arguments, "--resume", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert (run / "report" / "index.html").exists()


def test_report(disk, run_nibble, report_run, stories260k, shared):
    model = next(report_run.glob("*-Q4_0-ggml.gguf"))
    page = disk.folder / "index.html"
    page.write_text("old")
    disk.fill()
    text = shared / "text" / "tinystories" / "valid_v1_nosep.txt"
    result = run_nibble("compare", model, "--base", stories260k, "--text", text, "--ctx", "256", "--chunks", "2",
                        "--report", disk.folder)
    check_refused(result, page)
    assert disk.files() == {page: b"old"}


def test_standard_output(nibble, stories260k):
    with open("/dev/full", "w") as full:
        result = subprocess.run([nibble, "inspect", stories260k], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "nibble: standard output: cannot write: No space left on device\n"


def test_a_disk_that_may_only_be_read(disk, run_nibble, stories260k):
    out, run = disk.folder / "out.gguf", disk.folder / "run"
    out.write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
    reason = "Read-only file system"
    check_refused(run_nibble("quantize", "-q", stories260k, out, "Q4_0"), out, reason)
    check_refused(run_nibble(*train(f"output={run}")), run, reason)
    assert disk.files() == {out: b"old"}
