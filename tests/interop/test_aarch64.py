"""The program for 64-bit Arm, run by qemu-user, beside the native one: what it writes has the same bytes."""

import shutil
import subprocess

import gguf
import gguf_table
import numpy as np
import pytest
from conftest import ROOT
from test_imatrix import write_imatrix
from test_look_inside import random_quantized, write_model

PROGRAM = ROOT / "build" / "aarch64" / "nibble"
METHODS = ["ggml", "rtn", "search"]
TYPES = [name for name, _, _ in gguf_table.BLOCKS.values() if name != "F32"]
DECODED_ONLY = ["IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"]
LENGTH = 256  # a multiple of every block


@pytest.fixture(scope="module")
def run_on_arm():
    emulator = shutil.which("qemu-aarch64")
    if emulator is None or not PROGRAM.exists():
        pytest.skip("no qemu-aarch64 or no build/aarch64/nibble: scripts/aarch64 installs the one, builds the other")

    def run(*arguments):
        return subprocess.run(
            [emulator, "-L", "/usr/aarch64-linux-gnu", str(PROGRAM), *map(str, arguments)],
            capture_output=True, text=True, timeout=600,
        )

    return run


@pytest.fixture
def written(run_nibble, run_on_arm, tmp_path):
    """written(*arguments): the bytes that `nibble quantize -q ARGUMENTS` makes of OUT on either processor."""

    def run(*arguments):
        files = []
        for name, program in (("native", run_nibble), ("arm", run_on_arm)):
            out = tmp_path / f"{name}.gguf"
            result = program("quantize", "-q", *(out if word == "OUT" else word for word in arguments))
            assert result.returncode == 0, f"{name}: {result.stderr}"
            files.append(out.read_bytes())
        return files

    return run


def rows_that_break_codecs():
    random = np.random.default_rng(3)
    normal = random.standard_normal((12, LENGTH)) * 0.02
    normal[1, 77] = 30
    normal[2] = 0
    normal[3] = normal[0, 0]
    normal[4] = random.integers(-8, 9, LENGTH) / 8
    normal[5] = random.integers(-8, 8, LENGTH) + 0.5
    normal[6] = np.abs(normal[6]) + 0.5
    normal[7] *= 1e-38 / 0.02
    normal[8] *= 1e-6
    normal[9] *= 5e5
    normal[10] = random.standard_t(2, LENGTH) * 0.01
    normal[11, ::3] = -0.0
    return normal.astype(np.float32)


@pytest.fixture(scope="module")
def model(stories260k, tmp_path_factory):
    """Matrices of stories260K in rows that every type's blocks divide, and rows that break codecs; an imatrix of it."""
    tensors = {
        tensor.name: np.array(tensor.data).reshape(-1, LENGTH)
        for tensor in gguf.GGUFReader(stories260k).tensors
        if tensor.name.startswith("blk.0.") and tensor.name.endswith((".attn_q.weight", ".ffn_down.weight"))
    }
    tensors["blk.0.ffn_up.weight"] = rows_that_break_codecs()
    folder = tmp_path_factory.mktemp("aarch64")
    random = np.random.default_rng(4)
    write_imatrix(folder / "imatrix.gguf", {
        name: (np.exp(2 * random.standard_normal((1, LENGTH))).astype(np.float32), np.full((1, 1), 96, np.float32))
        for name in tensors
    })
    return write_model(folder / "rows.gguf", tensors), folder / "imatrix.gguf"


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_has_the_same_bytes(model, type_name, written, run_nibble, tmp_path):
    source, imatrix = model
    # By name, since not all of these are types of whole files.
    of_type = ["--tensor-type", f"weight={type_name}", source, "OUT", "Q8_0"]
    for method in METHODS:
        native, arm = written("--method", method, *of_type)
        assert arm == native, method
        if method != "rtn":  # which takes none
            native, arm = written("--method", method, "--imatrix", imatrix, *of_type)
            assert arm == native, f"{method} with an imatrix"
    (tmp_path / "of_type.gguf").write_bytes(native)
    assert {t.type for t in gguf_table.read(tmp_path / "of_type.gguf")[1].values()} == {type_name}
    native, arm = written("--allow-requantize", tmp_path / "of_type.gguf", "OUT", "F32")
    assert arm == native, "decoded"


@pytest.mark.parametrize("type_name", DECODED_ONLY)
def test_types_that_are_only_decoded_have_the_same_weights(type_name, written, tmp_path):
    blocks = random_quantized(type_name, 64, LENGTH, seed=5)
    if type_name == "IQ1_M":  # whose d lies in the highest bits of its last 8 bytes: of any size, but finite
        blocks[:, 55] = blocks[:, 55] & 0x0F | 0x20
    source = write_model(tmp_path / "blocks.gguf", {"blk.0.ffn_up.weight": (blocks, type_name)})
    native, arm = written("--allow-requantize", source, "OUT", "F32")
    assert arm == native


@pytest.mark.parametrize("type_name", ["Q4_K_M", "Q2_0"])
def test_a_model_has_the_same_bytes(stories260k, type_name, written):
    native, arm = written(stories260k, "OUT", type_name)
    assert arm == native


@pytest.mark.parametrize("tokenizer", ["stories260k", "smollm2_q4_1"])
def test_texts_have_the_same_tokens(tokenizer, request, run_nibble, run_on_arm, tmp_path):
    (tmp_path / "text").write_text("Once upon a time — naïve Ωmega 東京 🙂\tint x = 0x7f; it's 3.14\r\n\n  end ")
    arguments = ["tokenize", request.getfixturevalue(tokenizer), tmp_path / "text"]
    native, arm = run_nibble(*arguments), run_on_arm(*arguments)
    assert native.returncode == 0, native.stderr
    assert (arm.returncode, arm.stdout) == (0, native.stdout)
