"""nibble run, from a YAML file to a page and to files that the real llama.cpp runs, on a model of 260 thousand weights."""

import json
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "stories260k_q4_0.yaml"


def test_the_run_folder_is_complete(report_run):
    names = ("config.yaml", "plan.json", "metrics.jsonl", "start.gguf", "diagnosis.json", "comparison.json")
    for name in (*names, "report/index.html"):
        assert (report_run / name).stat().st_size > 0, name
    assert list((report_run / "checkpoints").glob("*.safetensors"))
    assert not list(report_run.rglob("*.tmp*")), "half-written files are left"


def test_training_beats_rounding(report_run):
    comparison = json.loads((report_run / "comparison.json").read_text())
    assert comparison["warnings"] == []  # that training moved the norms is not one
    kld = {model["name"]: model["mean_kld"] for model in comparison["models"]}
    # Half of llama-quantize's is far from what the run reaches and from what a broken one would.
    assert kld["Q4_0 trained"] < 0.5 * kld["Q4_0 llama-quantize"], kld
    # 2 %: search lowers the weights' error, which KLD follows only on average.
    assert kld["Q4_0 search"] < 1.02 * kld["Q4_0 llama-quantize"], kld


def test_the_diagnosis_is_of_every_quantized_tensor(report_run):
    diagnosis = json.loads((report_run / "diagnosis.json").read_text())
    plan = json.loads((report_run / "plan.json").read_text())
    types = {entry["name"]: entry["target"] for entry in plan["tensors"] if entry["target"] not in ("F32", "F16")}
    assert {tensor["tensor"]: tensor["type"] for tensor in diagnosis["tensors"]} == types
    assert json.loads((report_run / "comparison.json").read_text())["diagnosis"] == diagnosis
    assert diagnosis["warnings"] == []
    assert 0 < diagnosis["total"]["codes_moved"] < 0.5, diagnosis["total"]


def test_training_begins_where_the_search_ends(report_run):
    import gguf

    start = gguf.GGUFReader(report_run / "start.gguf").tensors
    searched = gguf.GGUFReader(next(report_run.glob("*-Q4_0-search.gguf"))).tensors
    assert {t.name: bytes(t.data) for t in start} == {t.name: bytes(t.data) for t in searched}


def test_all_files_of_one_plan_have_equal_size(report_run):
    comparison = json.loads((report_run / "comparison.json").read_text())
    sizes = {m["name"]: m["bytes"] for m in comparison["models"] if m["name"].startswith("Q4_0")}
    # The header alone may differ: nibble's own keys and one hash a tensor.
    assert max(sizes.values()) - min(sizes.values()) < 4096, sizes


def test_the_rounded_file_is_llama_quantizes(report_run, stories260k, llama_bin, llama_env, tmp_path):
    import gguf

    theirs = tmp_path / "theirs.gguf"
    subprocess.run([llama_bin("llama-quantize"), stories260k, theirs, "Q4_0"], env=llama_env, check=True,
                   capture_output=True)
    ours = next(report_run.glob("*-Q4_0-ggml.gguf"))
    wanted = {t.name: (t.tensor_type, bytes(t.data)) for t in gguf.GGUFReader(theirs).tensors}
    found = {t.name: (t.tensor_type, bytes(t.data)) for t in gguf.GGUFReader(ours).tensors}
    assert found == wanted


def test_llama_cpp_generates_from_the_trained_file(report_run, llama_generates):
    llama_generates(next(report_run.glob("*-Q4_0-trained.gguf")), "Once upon a time")


def test_the_resolved_configuration_runs_again(report_run, run_nibble, tmp_path):
    result = run_nibble(
        "run", report_run / "config.yaml", "--set", f"output={tmp_path / 'again'}", "--set", "max_tokens=2048",
        "--set", "compare.types=[]", "--set", "compare.chunks=2", "--json", cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert {m["name"] for m in json.loads(result.stdout)["models"]} >= {"Q4_0 trained", "Q4_0 llama-quantize"}


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        (["nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        ([], "no CONFIG.yaml given"),
        ([CONFIG, "--set", "optimizer.learning_rat=1"], "(did you mean 'learning_rate'?)"),
        ([CONFIG, "--set", "batch_tokens=many"], "batch_tokens: wants a whole number, found 'many'"),
        ([CONFIG, "--set", "model=nowhere.gguf"], "model: no such file: nowhere.gguf"),
        ([CONFIG, "--set", "quant.scales=dynamic"], "optimizer.scale_learning_rate: has no effect"),
        ([CONFIG, "--device", "tpu"], "no device 'tpu'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run_nibble, stories260k, tmp_path, arguments, wanted):
    output = tmp_path / "out"
    more = ["--set", f"output={output}"] if arguments else []
    result = run_nibble("run", *arguments, *more, cwd=ROOT)
    assert result.returncode == 2, result.stderr
    assert wanted in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not output.exists()


def test_a_dry_run_says_what_the_training_takes_and_leaves_nothing(run_nibble, stories260k, tmp_path):
    of = {
        command: run_nibble(command, CONFIG, "--dry-run", "--json", "--set", f"output={tmp_path / 'out'}", cwd=ROOT)
        for command in ("run", "train")
    }
    assert of["run"].returncode == 0 and json.loads(of["run"].stdout)["type"] == "Q4_0", of["run"].stderr
    assert of["run"].stdout == of["train"].stdout
    assert not (tmp_path / "out").exists()


def test_the_program_tells_its_version_and_its_commands(run_nibble):
    version = run_nibble("--version")
    declared = re.search(r"project\(nibble\s+VERSION\s+([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
    assert (version.returncode, version.stdout) == (0, f"nibble {declared}\n")
    usage = run_nibble("--help")
    assert usage.returncode == 0 and "quantize" in usage.stdout and "train" in usage.stdout
    assert "did you mean 'quantize'" in run_nibble("quantise").stderr
