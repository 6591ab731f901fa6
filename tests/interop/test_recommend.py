"""nibble recommend against the files that nibble quantize writes and the memory that llama.cpp says it takes."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def recommend(run_nibble, *arguments):
    result = run_nibble("recommend", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def by_type(answer):
    return {row["type"]: row for row in answer["types"]}


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K_M", "Q3_K_S", "Q2_0"])
def test_file_sizes(run_nibble, smollm2_q4_1, tmp_path, type_name):
    said = by_type(recommend(run_nibble, smollm2_q4_1))[type_name]["file_bytes"]
    out = tmp_path / "out.gguf"
    result = run_nibble("quantize", smollm2_q4_1, out, type_name, "--allow-requantize", "--method", "ggml")
    assert result.returncode == 0, result.stderr
    assert abs(said / out.stat().st_size - 1) < 0.005


def test_a_configuration_is_enough(run_nibble, shared, smollm2_q4_1):
    """The same tensors, so the same bytes of them; only the tokenizer is not there."""
    ours = by_type(recommend(run_nibble, shared / "hf" / "SmolLM2-135M"))
    of_file = by_type(recommend(run_nibble, smollm2_q4_1))
    assert set(ours) == set(of_file)
    for name, row in ours.items():
        assert row["weights_bytes"] == of_file[name]["weights_bytes"], name
        assert row["kv_bytes"] == of_file[name]["kv_bytes"]


# Bytes of the files of Qwen/Qwen3-4B-GGUF on Hugging Face.
@pytest.mark.parametrize(
    "type_name, size", [("Q4_K_M", 2497280256), ("Q5_K_M", 2889513184), ("Q6_K", 3306260704), ("Q8_0", 4280404704)]
)
def test_sizes_of_released_files(run_nibble, shared, type_name, size):
    said = by_type(recommend(run_nibble, shared / "hf" / "Qwen3-4B" / "config.json"))[type_name]["file_bytes"]
    assert abs(said / size - 1) < 0.005


def test_a_folder_is_converted_first(run_nibble, shared):
    folder = shared / "hf" / "Qwen3-4B"
    said = run_nibble("recommend", folder).stdout
    assert f"nibble convert {folder} MODEL.gguf" in said and "nibble quantize MODEL.gguf OUT.gguf" in said


def reported_memory(text):
    """Bytes of the buffers that llama.cpp allocates, as its log has them in MiB: the last of each kind, since it first
    tries what would fit."""
    return sum(float(re.findall(rf"{kind} buffer size += +([\d.]+) MiB", text)[-1]) for kind in ("model", "KV", "compute")) * 2**20


# Of stories260K, whose heads are too small for q8_0, the mask of attention is most of what is computed with.
@pytest.mark.parametrize("ctx", [512, 4096])
@pytest.mark.parametrize(
    "model, kv_type",
    [("smollm2_q4_1", "f16"), ("smollm2_q4_1", "q8_0"), ("smollm2_f32", "f16"), ("smollm2_f32", "q8_0"), ("stories260k", "f16")],
)
def test_memory(run_nibble, run_llama, request, model, ctx, kv_type):
    path = request.getfixturevalue(model)
    _, log = run_llama("llama-completion", "-m", path, "-c", ctx, "-n", "1", "-p", "a", "-no-cnv", "-ctk", kv_type, "-ctv", kv_type,
                    "-fa", "on", "-ub", "512", "--no-warmup", "-v", until="llama threadpool init")  # fmt: skip
    taken = reported_memory(log)
    answer = by_type(recommend(run_nibble, path, "--ctx", ctx, "--kv-type", kv_type))
    source = "Q4_1" if model == "smollm2_q4_1" else "F32"
    assert abs(answer[source]["total_bytes"] / taken - 1) < 0.1, (answer[source], taken)


def test_types_are_ranked_by_what_was_measured():
    """The errors in the program are those of docs/formats.md's table, by search."""
    said = re.findall(r"\{GgmlType::k(\w+), ([\d.]+)\}", (ROOT / "recipes" / "recommend.cc").read_text())
    table = (ROOT / "docs" / "formats.md").read_text().split("## Measured")[1].split("\n## ")[0]
    measured = {row[0]: float(row[1]) for row in re.findall(r"^\| (\w+) \|[^|]*\|[^|]*\| ([\d.]+) \|$", table, re.M)}
    assert len(said) == 20 and all(float(error) == measured[name] for name, error in said)


def test_priorities(run_nibble, shared):
    model = shared / "hf" / "Mistral-7B-Instruct-v0.3"
    chosen = {
        priority: recommend(run_nibble, model, "--priority", priority)["recommended"]
        for priority in ("quality", "max_quality", "balanced", "speed", "size", "max_compression")
    }
    assert chosen["quality"] == chosen["max_quality"]
    assert chosen["size"] == chosen["max_compression"]
    rows = by_type(recommend(run_nibble, model))
    sizes = [rows[chosen[name]]["file_bytes"] for name in ("quality", "balanced", "speed", "size")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4


def test_what_does_not_fit(run_nibble, shared):
    model = shared / "hf" / "Mistral-7B-Instruct-v0.3"
    roomy = recommend(run_nibble, model, "--vram", "6G", "--priority", "quality")
    rows = by_type(roomy)
    assert rows[roomy["recommended"]]["fits"]
    assert all(row["fits"] == (row["total_bytes"] <= 6e9) for row in rows.values())
    assert all(row["gpu_layers"] == 33 for row in rows.values() if row["fits"])
    tight = recommend(run_nibble, model, "--vram", "1G")
    assert not any(row["fits"] for row in tight["types"])
    assert 0 < by_type(tight)["Q4_K_M"]["gpu_layers"] < 33


def test_by_number_of_weights(run_nibble):
    for params, weights in (("1B", 1e9), ("7B", 7e9), ("70B", 7e10)):
        row = by_type(recommend(run_nibble, "--params", params))["F16"]
        assert abs(row["weights_bytes"] / 2 / weights - 1) < 0.25, params


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give either a MODEL or --params"),
        (["x.gguf", "--params", "7B"], "give either a MODEL or --params"),
        (["--params", "7"], "--params: wants 10M or more"),
        (["--params", "7B", "--vram", "eight"], "--vram: wants a size as 90M or 1.5G, found 'eight'"),
        (["--params", "7B", "--kv-type", "q2_k"], "llama.cpp keeps no keys and values as 'q2_k'"),
        (["--params", "7B", "--priority", "sped"], "no 'sped'; quality, balanced, speed or size (did you mean 'speed'?)"),
        (["--params", "7B", "--ctx", "0"], "--ctx wants 1 to 2^31, found 0"),
    ],
)
def test_refusals(run_nibble, arguments, message):
    result = run_nibble("recommend", *arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
