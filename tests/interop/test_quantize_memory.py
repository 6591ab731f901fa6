"""What nibble quantize takes of memory beyond the file that it maps is at most the two largest tensors, for one type as
for ten."""

import resource

import gguf_table
import numpy as np
import pytest
from generated_llama import write_skeleton
from test_imatrix import write_imatrix

TEN = "Q2_K,Q3_K_M,Q4_0,Q4_K_S,Q4_K_M,Q5_K_S,Q5_K_M,Q6_K,Q8_0,IQ4_XS"
# All that is no map of a file to read counts here, touched or not: the program's data, its heap, and the second thread's
# stack, which is as large as the limit of the first's and no memory until it is used.
STACK = 8 << 20


@pytest.fixture
def quantize(run_nibble):
    """quantize(limit, *arguments): on two threads, with at most `limit` bytes of memory of its own."""

    def run(limit, *arguments):
        def limited():
            resource.setrlimit(resource.RLIMIT_STACK, (STACK, STACK))
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        return run_nibble("quantize", "-q", "--method", "ggml", *arguments, "2", preexec_fn=limited)

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Matrices of 2 MB in float16, experts of 8 MB: decoded, one such tensor is as large as the two largest are."""
    path = tmp_path_factory.mktemp("memory") / "model.gguf"
    write_skeleton(path, layers=1, width=1024, experts=4)
    return path


@pytest.fixture(scope="module")
def imatrix(model):
    entries = {}
    for name, tensor in gguf_table.read(model)[1].items():
        matrices = tensor.shape[2] if len(tensor.shape) == 3 else 1
        entries[name] = (np.ones((matrices, tensor.shape[0]), np.float32), np.ones((matrices, 1), np.float32))
    path = model.with_name("imatrix.gguf")
    write_imatrix(path, entries)
    return path


def two_largest(model):
    return sum(sorted(len(tensor.data) for tensor in gguf_table.read(model)[1].values())[-2:])


@pytest.mark.parametrize("types", [["OUT", "Q4_K_M"], ["DIR", "--types", TEN]], ids=["one", "ten"])
@pytest.mark.parametrize("weighed", [False, True], ids=["plain", "imatrix"])
def test_at_most_the_two_largest_tensors(model, imatrix, types, weighed, quantize, tmp_path):
    flags = ["--imatrix", imatrix] if weighed else []
    words = [tmp_path / "out" if word in ("OUT", "DIR") else word for word in types]
    result = quantize(two_largest(model) + STACK, *flags, model, *words)
    assert result.returncode == 0, result.stderr


def test_the_limit_is_one(model, quantize, tmp_path):
    result = quantize(STACK, model, tmp_path / "out", "Q4_K_M")
    assert result.returncode == 1
    assert "cannot start 1 threads beside the first" in result.stderr
    assert not list(tmp_path.iterdir())
