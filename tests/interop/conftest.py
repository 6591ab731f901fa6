"""Fixtures of the interoperation tests: the built program, real models and texts, and the real llama.cpp.

What a machine lacks (../shared, a peer) is a visible skip. NIBBLE names the program to test.
"""

import ctypes
import os
import pathlib
import re
import signal
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
SITE_PACKAGES = pathlib.Path(sysconfig.get_path("purelib"))
PROGRAM = pathlib.Path(os.environ.get("NIBBLE", ROOT / "build" / "nibble"))


def built_library(name):
    """A shared library of tests/CMakeLists.txt, from the build that the tested program is of; None if not built."""
    path = PROGRAM.resolve().parent / "tests" / f"lib{name}.so"
    return ctypes.CDLL(str(path)) if path.exists() else None


@pytest.fixture(scope="session")
def nibble():
    assert PROGRAM.exists(), f"{PROGRAM} is not built: run scripts/setup"
    return PROGRAM


@pytest.fixture(scope="session")
def run_nibble(nibble):
    def run(*arguments, timeout=300, **options):
        return subprocess.run(
            [str(nibble), *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **options
        )

    return run


def hear_signals():
    """For preexec_fn: a background job ignores Ctrl-C, and what nohup started SIGHUP; what is tested hears both."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def one_thread(monkeypatch):
    """For many short runs: the threads of LibTorch's steps on so small a model mostly wait for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared():
    if not SHARED.exists():
        pytest.skip(f"no {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def stories260k(shared):
    return shared / "models" / "stories260K" / "stories260K-f32.v3.gguf"


@pytest.fixture(scope="session")
def smollm2_q4_1():
    path = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip(f"no {path}: run scripts/fetch_smollm2")
    return path


@pytest.fixture(scope="session")
def smollm2_f32(smollm2_q4_1, llama_bin, llama_env, tmp_path_factory):
    """SmolLM2 dequantized to float32 by the real llama-quantize."""
    path = tmp_path_factory.mktemp("smollm2") / "smollm2-f32.gguf"
    subprocess.run(
        [llama_bin("llama-quantize"), "--allow-requantize", smollm2_q4_1, path, "F32"],
        env=llama_env, check=True, capture_output=True,
    )
    return path


@pytest.fixture(scope="session")
def llama_bin():
    def find(name):
        path = SITE_PACKAGES / "bin" / name
        if not path.exists():
            pytest.skip(f"no {name}: llama-cpp-python was installed without its tools")
        return path

    return find


@pytest.fixture(scope="session")
def llama_env():
    return {**os.environ, "LD_LIBRARY_PATH": str(SITE_PACKAGES / "lib")}


@pytest.fixture(scope="session")
def run_llama(llama_bin, llama_env):
    """run(tool, *arguments, until): all a llama.cpp tool prints. Its logger can lose the last lines when the program
    ends, so it is run again until they match the regular expression `until`."""

    def run(tool, *arguments, until):
        for _ in range(10):
            result = subprocess.run(
                [llama_bin(tool), *map(str, arguments)],
                env=llama_env, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL,
            )
            assert result.returncode == 0, result.stderr[-2000:]
            if re.search(until, result.stdout + result.stderr):
                return result.stdout, result.stderr
        raise AssertionError(f"{tool} never printed {until}: {result.stdout[-500:]} {result.stderr[-2000:]}")

    return run


@pytest.fixture(scope="session")
def llama_generates(run_llama):
    """llama_generates(model, prompt): llama.cpp goes on from the prompt. After a few tokens it ends before its logger has
    printed them, half of the time; after two hundred it did not."""

    def generate(model, prompt):
        more = re.escape(prompt.strip()) + r"\W+\w"
        stdout, _ = run_llama(
            "llama-completion", "-m", model, "-p", prompt, "-n", 200, "-t", 1, "-no-cnv", "--temp", 0, until=more)
        assert re.search(more, stdout)

    return generate


@pytest.fixture(scope="session")
def ggml_base():
    for folder in (SITE_PACKAGES / "llama_cpp" / "lib", SITE_PACKAGES / "lib"):
        path = folder / "libggml-base.so"
        if path.exists():
            return ctypes.CDLL(str(path))
    pytest.skip("no libggml-base.so: llama-cpp-python is not installed")


@pytest.fixture(scope="session")
def report_run(run_nibble, stories260k, tmp_path_factory):
    """The folder of one whole `nibble run` on stories260K, shared by all who look at its parts."""
    folder = tmp_path_factory.mktemp("runs") / "stories260k"
    result = run_nibble("run", ROOT / "configs" / "stories260k_q4_0.yaml", "--set", f"output={folder}", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return folder
