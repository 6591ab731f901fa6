"""PTQ that looks at activations: the files in the real llama.cpp, beside search, as baselines of a run."""

import json
import subprocess

import gguf_table
import numpy as np
import pytest
from generated_llama import write_llama
from test_perplexity import F32_CACHE, assert_same_figures, figures, number_after
from test_quantize import SHAPE

METHODS = ["gptq", "awq", "blockwise"]
CALIBRATION, HELD_OUT = "tinystories/train_v1_first2MiB.txt", "tinystories/valid_v1_nosep.txt"


@pytest.fixture(scope="module")
def calibration(shared):
    return shared / "text" / CALIBRATION


@pytest.fixture(scope="module")
def held_out(shared):
    return shared / "text" / HELD_OUT


@pytest.fixture(scope="module")
def wide(stories260k, tmp_path_factory):
    """Rows that 256 divides, four query heads to a value head, an output of its own; random weights."""
    path = tmp_path_factory.mktemp("ptq") / "wide.gguf"
    write_llama(path, stories260k, **SHAPE, gqa=4, dtype=np.float32, tied=False)
    return path


@pytest.fixture
def quantized(run_nibble, calibration, tmp_path):
    def run(model, type_name, method):
        path = tmp_path / f"{type_name}-{method}.gguf"
        text = [] if method == "search" else ["--calibration", calibration, "--calibration-tokens", 16384]
        result = run_nibble("quantize", model, path, type_name, "--method", method, *text)
        assert result.returncode == 0, result.stderr
        return path

    return run


@pytest.fixture(scope="module")
def llama_perplexity(run_llama):
    def run(*arguments):
        return "".join(run_llama("llama-perplexity", *arguments, *F32_CACHE, until=r"Same top p: .*%"))

    return run


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source, type_name", [("stories260k", "Q4_0"), ("stories260k", "Q2_0"), ("wide", "Q2_K"),
                                               ("wide", "Q3_K_M"), ("wide", "Q4_K_M")])
def test_llama_cpp_measures_what_nibble_measures(source, type_name, method, request, quantized, run_nibble, held_out,
                                                 llama_bin, llama_env, llama_perplexity, tmp_path):
    model = request.getfixturevalue(source)
    path, base, as_f32 = quantized(model, type_name, method), tmp_path / "base.kld", tmp_path / "f32.gguf"
    subprocess.run([llama_bin("llama-quantize"), "--allow-requantize", path, as_f32, "F32"], env=llama_env, check=True,
                   capture_output=True)
    figures(run_nibble, model, held_out, "--ctx", 256, "--chunks", 8, "--kl-divergence-base", base)
    ours = figures(run_nibble, path, "--kl-divergence", "--kl-divergence-base", base)
    arguments = ["-c", 256, "--kl-divergence", "--kl-divergence-base", base]
    assert_same_figures(ours, llama_perplexity("-m", as_f32, *arguments))
    # As shipped llama.cpp rounds activations to 8 bits, which adds its own little divergence.
    shipped = number_after("Mean    KLD", llama_perplexity("-m", path, *arguments))[0]
    assert shipped == pytest.approx(ours["mean_kld"], rel=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("type_name", ["Q4_0", "Q2_K", "Q4_K_M"])
def test_the_plan_is_that_of_the_other_methods(wide, type_name, method, quantized, run_nibble):
    searched, path = quantized(wide, type_name, "search"), quantized(wide, type_name, method)
    (metadata, tensors), (wanted_metadata, wanted) = gguf_table.read(path), gguf_table.read(searched)
    assert [(name, t.type, t.shape) for name, t in tensors.items()] == [(n, t.type, t.shape) for n, t in wanted.items()]
    assert metadata.pop("nibble.method")[1] == method.encode()
    assert wanted_metadata.pop("nibble.method")[1] == b"search"
    assert repr(metadata) == repr(wanted_metadata)
    # What sees no activations is searched for, every matrix of the blocks is not. AWQ moves factors out of norms; block
    # by block they train.
    same = {name for name in tensors if tensors[name] == wanted[name]}
    norms = {name for name in tensors if name.startswith("blk.") and "_norm" in name}
    matrices = {name for name in tensors if name.startswith("blk.")} - norms
    assert same - norms == set(tensors) - norms - matrices
    assert (norms <= same) == (method == "gptq")
    assert run_nibble("verify", path).returncode == 0


@pytest.mark.parametrize("method", ["gptq", "blockwise"])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q2_0"])
def test_it_is_nearer_to_the_source_than_search(stories260k, type_name, method, quantized, run_nibble, held_out):
    paths = [quantized(stories260k, type_name, each) for each in ["search", method]]
    result = run_nibble("compare", *paths, "--base", stories260k, "--text", held_out, "--ctx", 256, "--chunks", 20,
                        "--json")
    assert result.returncode == 0, result.stderr
    search, calibrated = (model["mean_kld"] for model in json.loads(result.stdout)["models"])
    assert calibrated < 0.9 * search


@pytest.mark.parametrize("arguments, status, said", [
    (["Q4_0", "--method", "gptq"], 2, "give --calibration TEXT"),
    (["Q4_0", "--method", "awq", "--calibration", "nowhere.txt"], 2, "no such file: nowhere.txt"),
    (["Q4_0", "--calibration", "TEXT"], 2, "is for --method gptq, awq and blockwise, not for search"),
    (["Q4_0", "--method", "gptk"], 2, "(did you mean 'gptq'?)"),
    (["Q4_0", "--method", "gptq", "--calibration", "TEXT", "--imatrix", "x"], 2, "--imatrix does not go with"),
    (["Q4_0", "--method", "gptq", "--calibration", "TEXT", "--prune-layers", "1"], 2, "--prune-layers does not go"),
    (["Q4_0", "--method", "gptq", "--calibration", "TEXT", "--calibration-tokens", "0"], 2, "wanted 1 or more"),
    (["Q4_0", "--method", "gptq", "--calibration", "MODEL"], 1, "not a text file"),
    (["Q4_0", "--method", "gptq", "--calibration", "SHORT"], 1, "--calibration: "),
])
def test_one_line_says_what_is_wrong(stories260k, calibration, arguments, status, said, run_nibble, tmp_path):
    (tmp_path / "short.txt").write_text("Once upon a time.")
    named = {"TEXT": calibration, "MODEL": stories260k, "SHORT": tmp_path / "short.txt"}
    out = tmp_path / "out.gguf"
    result = run_nibble("quantize", stories260k, out, *(named.get(each, each) for each in arguments), "-q")
    assert result.returncode == status, result.stderr
    assert said in result.stderr and not out.exists()
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_model_that_nibble_cannot_run(stories260k, calibration, run_nibble, tmp_path):
    other, out = tmp_path / "other.gguf", tmp_path / "out.gguf"
    architecture = "general.architecture=str:gptneox"
    assert run_nibble("quantize", stories260k, other, "COPY", "--override-kv", architecture).returncode == 0
    result = run_nibble("quantize", other, out, "Q4_0", "--method", "gptq", "--calibration", calibration)
    assert result.returncode == 1 and "gptneox" in result.stderr and not out.exists()
    assert len(result.stderr.strip().splitlines()) == 1


def test_they_are_baselines_and_beginnings_of_a_run(stories260k, calibration, held_out, run_nibble, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"""
model: {stories260k}
output: {tmp_path / "run"}
quant: {{type: Q4_0, initial: awq, calibration_tokens: 8192}}
data: {{files: [{calibration}], sequence_length: 128, max_bytes: 400000}}
batch_tokens: 512
max_tokens: 2048
blockwise: {{tokens: 4096, batch_tokens: 256}}
baselines: [ggml, search, imatrix, gptq, awq, blockwise]
compare: {{text: {held_out}, ctx: 128, chunks: 8}}
""")
    result = run_nibble("run", config, "--json", timeout=900)
    assert result.returncode == 0, result.stderr
    kld = {model["name"]: model["mean_kld"] for model in json.loads(result.stdout)["models"]}
    for row in ["imatrix", "gptq", "awq", "blockwise"]:
        assert kld[f"Q4_0 {row}"] < kld["Q4_0 llama-quantize"], kld
    # Block by block and four steps from where AWQ is: neither search's beginning nor the original's.
    assert kld["Q4_0 trained"] < kld["Q4_0 awq"], kld
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "GPTQ" in page and "AWQ" in page and "block by block" in page
