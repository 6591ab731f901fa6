"""Which tensor gets which type: every file type against llama_model_quantize itself, refusals included.

nibble's plan is asked for in the shared library of tests/interop/plan_c.cc.
"""

import ctypes
import json
import pathlib
import re
import subprocess
import sys

import gguf_table
import numpy as np
import pytest
from conftest import built_library
from generated_llama import write_llama, write_skeleton

HERE = pathlib.Path(__file__).resolve().parent


def _load():
    library = built_library("nibble_plan_c")
    if library is None:
        return None
    library.nibble_plan.restype = ctypes.c_char_p
    return library


LIBRARY = _load()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libnibble_plan_c.so is not built")


@pytest.fixture(scope="module")
def llama_help(llama_bin, llama_env):
    """What the real llama-quantize prints for --help."""
    return subprocess.run(
        [llama_bin("llama-quantize"), "--help"], env=llama_env, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def file_types(llama_help):
    """{name: number} of all that llama-quantize lists, COPY apart."""
    found = re.findall(r"^ +(\d+) +or +(\w+) *:", llama_help, re.MULTILINE)
    assert len(found) == 38
    return {name: int(number) for number, name in found}


def test_every_name_and_number_is_known(file_types):
    for name, number in file_types.items():
        for word in (name, name.lower(), str(number)):
            assert LIBRARY.nibble_file_type(word.encode()) == number, word
    for word in ("", "COPY", "Q4_9", "5", "15x", "-1", "1024"):
        assert LIBRARY.nibble_file_type(word.encode()) == -1, word


def nibble_plan(path, name, has_imatrix, pure):
    text = LIBRARY.nibble_plan(
        str(path).encode(), name.encode(), ctypes.c_bool(has_imatrix), ctypes.c_bool(pure)).decode()
    return None if text.startswith("error: ") else dict(line.split(" ") for line in text.splitlines())


def assert_same_plans(paths, file_types, options=((False, False), (True, False))):
    """options: pairs of has an imatrix, pure. Returns how many plans both refuse."""
    jobs = [(path, name, *option) for path in paths for name in file_types for option in options]
    asked = json.dumps([[str(path), file_types[name], *option] for path, name, *option in jobs])
    child = subprocess.run(
        [sys.executable, HERE / "llama_plan_child.py"], input=asked, capture_output=True, text=True, check=True)
    refused = 0
    for job, wanted in zip(jobs, json.loads(child.stdout), strict=True):
        found = nibble_plan(*job)
        assert (found is None) == (wanted is None), (job, found, wanted)
        if wanted is None:
            refused += 1
            continue
        assert len(wanted) > 1
        different = {name: (found.get(name), wanted[name]) for name in wanted if found.get(name) != wanted[name]}
        assert len(found) == len(wanted) and not different, (job, different)
    return refused


def skeletons(folder, variants):
    paths = []
    for i, variant in enumerate(variants):
        shown = "-".join(f"{key}={value}" for key, value in variant.items())
        paths.append(folder / f"{i}-{shown}.gguf")
        write_skeleton(paths[-1], **variant)
    return paths


@pytest.mark.parametrize("layers", [1, 7, 8, 26, 80])
def test_generated_llamas(layers, file_types, tmp_path):
    paths = skeletons(tmp_path, [
        {"layers": layers, "gqa": gqa, "experts": experts, "tied": tied}
        for gqa in (1, 4, 8) for experts in (0, 4, 8) for tied in (False, True)
    ])
    assert assert_same_plans(paths, file_types) == 0


def test_other_architectures(file_types, tmp_path):
    """Those that the rules name; 80 layers (jais2: 68) are a "70B", with other rules for V."""
    large = [
        {"architecture": architecture, "layers": layers, "gqa": gqa}
        for architecture, layers in [("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68), ("llama-embed", 80)]
        for gqa in (1, 8)
    ]
    falcons = [
        {"architecture": "falcon", "layers": layers, "fused": True, "gqa": gqa, "width": width}
        for layers in (2, 26, 80) for gqa in (1, 8) for width in (256, 288)
    ]
    assert_same_plans(skeletons(tmp_path, large + falcons), file_types)


def test_qwen35(file_types, tmp_path):
    """24 and 32 layers as the published ones; rows that every block divides, and that super-blocks do not."""
    variants = [
        {"architecture": "qwen35", "layers": layers, "gqa": gqa, "tied": tied, "width": width}
        for layers, gqa, tied in [(24, 4, True), (32, 4, False), (64, 8, False)] for width in (256, 320)
    ]
    variants += [
        {"architecture": architecture, "layers": layers, "gqa": 8, "experts": 4, "width": width}
        for architecture, layers in [("qwen35moe", 40), ("qwen3next", 48)] for width in (256, 320)
    ]
    assert_same_plans(skeletons(tmp_path, variants), file_types)


def test_layers_that_predict_further_tokens(file_types, tmp_path):
    assert_same_plans(skeletons(tmp_path, [
        {"architecture": architecture, "layers": layers + 1, "mtp": 1, "gqa": 8, "experts": experts, "width": width}
        for architecture, layers, experts in [("qwen35", 24, 0), ("qwen35moe", 40, 4), ("qwen3next", 48, 4)]
        for width in (256, 320)
    ]), file_types)


def test_gpt_oss(file_types, tmp_path):
    """As many experts as the published ones; rows that every block divides, and that super-blocks and Q1_0's do not."""
    refused = assert_same_plans(skeletons(tmp_path, [
        {"architecture": "gpt-oss", "layers": layers, "gqa": 8, "experts": experts, "width": width}
        for layers, experts in [(24, 32), (36, 128)] for width in (256, 320)
    ]), file_types)
    assert refused == 2 * 2


def test_the_files_order_does_not_matter(file_types, tmp_path):
    assert_same_plans(skeletons(tmp_path, [{"layers": 12, "backwards": True}]), file_types)


def test_rows_that_blocks_do_not_divide(file_types, tmp_path):
    """288: of 32 only; 320: also of 64; 384: also of 128; 264: of none. Q1_0 is refused but for 384."""
    paths = skeletons(tmp_path, [
        {"layers": 3, "width": width, "gqa": 4, "tied": tied, "experts": experts}
        for width in (288, 320, 384, 264) for tied in (False, True) for experts in (0, 8)
    ])
    refused = assert_same_plans(paths, file_types, [(False, False), (True, False), (False, True)])
    assert refused == 3 * 2 * 2 * 3


def test_pure(file_types, tmp_path):
    paths = skeletons(tmp_path, [
        {"layers": 8, "tied": tied, "experts": experts} for tied in (False, True) for experts in (0, 8)
    ])
    assert assert_same_plans(paths, file_types, [(False, True)]) == 0


def test_real_models(stories260k, smollm2_q4_1, file_types):
    every = [(False, False), (True, False), (False, True)]
    assert_same_plans([stories260k, smollm2_q4_1], file_types, every)


def test_every_flag_is_taken_or_refused_with_a_reason(llama_help, run_nibble, stories260k, tmp_path):
    flags = sorted(set(re.findall(r"--[a-z][a-z-]+", llama_help)))
    assert len(flags) >= 16
    ours = set(re.findall(r"--[a-z][a-z-]+", run_nibble("quantize", "--help").stdout))
    for flag in flags:
        if flag in ours:
            continue
        refused = run_nibble("quantize", flag, "1", stories260k, tmp_path / "out.gguf", "Q4_0")
        assert refused.returncode == 2 and f"{flag} is refused: " in refused.stderr, (flag, refused.stderr)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained_mix(stories260k, shared, run_nibble, tmp_path_factory):
    """(source, run folder) of two steps of training in Q4_K_M, each tensor in its own type."""
    folder = tmp_path_factory.mktemp("mix")
    source, run = folder / "deep.gguf", folder / "run"
    write_llama(
        source, stories260k, width=256, wide=256, layers=9, heads=4, context=64, gqa=4, tied=False, dtype=np.float32)
    config = folder / "mix.yaml"
    config.write_text(f"""
model: {source}
output: {run}
quant: {{type: Q4_K_M, scales: learned, initial: ggml}}
data: {{files: ["{shared / "text" / "tinystories" / "valid_v1_nosep.txt"}"], sequence_length: 32, max_bytes: 20000}}
batch_tokens: 64
micro_batch_tokens: 64
max_tokens: 128
""")
    result = run_nibble("train", config)
    assert result.returncode == 0, result.stderr
    return source, run


def test_a_mix_trains_and_ships_each_tensor_in_its_type(trained_mix, run_nibble, tmp_path):
    source, run = trained_mix
    out = tmp_path / "out.gguf"
    result = run_nibble("export", run, out)
    assert result.returncode == 0, result.stderr
    result = run_nibble("verify", out, "--against", run)
    assert result.returncode == 0, result.stderr
    _, tensors = gguf_table.read(out)
    found = {name: tensor.type for name, tensor in tensors.items()}
    assert found == nibble_plan(source, "Q4_K_M", False, False)
    assert {"Q4_K", "Q6_K", "F32"} == set(found.values())


def test_training_in_a_type_without_a_codec_is_refused_before_anything_is_written(trained_mix, run_nibble, tmp_path):
    _, run = trained_mix
    config = (run / "config.yaml").read_text().replace("Q4_K_M", "IQ2_XXS")
    (tmp_path / "config.yaml").write_text(config)
    refused = run_nibble("train", tmp_path / "config.yaml", "--set", f"output={tmp_path / 'run'}")
    assert refused.returncode == 2 and "does not encode it" in refused.stderr, refused.stderr
    assert "is the nearest type" in refused.stderr
    assert not (tmp_path / "run").exists()
