"""The layer of Qwen3.5 and Qwen3-Next that predicts further tokens: llama.cpp's own converter makes the same file of
it, llama.cpp loads it, and everything that nibble computes is what it computes without."""

import json
import re
import shutil

import gguf_table
import numpy as np
import pytest
from test_convert import (  # noqa: F401
    CTX, assert_same_file, convert, converter, make_model, run_converter, text_of, torch_env,
)
from test_hf_folder import tensors_of
from test_model import llama_log_probs

NAMES = ["qwen35", "qwen35moe", "qwen3next"]


@pytest.fixture(scope="session")
def pair(run_nibble, make_model, tmp_path_factory):  # noqa: F811
    """name: the model in float32 without the layer, and with it."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("mtp")
            made[name] = [
                convert(run_nibble, make_model(name), folder / file, "--outtype", "f32", *arguments)
                for file, arguments in (("without.gguf", []), ("with.gguf", ["--mtp"]))
            ]
        return made[name]

    return make


def tensors_in(path):
    return gguf_table.read(path)[1]


def run(run_nibble, *arguments):  # noqa: F811
    result = run_nibble(*arguments)
    assert result.returncode == 0, result.stderr
    return result


def some_tokens():
    return np.arange(1000, 1000 + 2 * CTX, dtype=np.int32).reshape(2, CTX)


@pytest.mark.parametrize("name, outtype", [("qwen35", "f16"), ("qwen35moe", "bf16"), ("qwen3next", "f16")])
def test_keys_and_bytes_are_those_of_llama_cpps_converter(
    run_nibble, torch_env, converter, make_model, name, outtype, tmp_path  # noqa: F811
):
    run_converter(converter, torch_env, make_model(name), tmp_path / "theirs.gguf", outtype, has_mtp=True)
    convert(run_nibble, make_model(name), tmp_path / "ours.gguf", "--outtype", outtype, "--mtp")
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_and_nibble_compute_what_they_compute_without(run_nibble, pair, shared, name, tmp_path):
    without, with_mtp = pair(name)
    added = tensors_in(with_mtp).keys() - tensors_in(without).keys()
    assert len(added) > 10 and all(tensor.startswith("blk.5.") for tensor in added)
    assert np.array_equal(*(llama_log_probs(path, some_tokens(), tmp_path) for path in (without, with_mtp)))
    bases = [tmp_path / "without.kld", tmp_path / "with.kld"]
    for path, base in zip((without, with_mtp), bases):
        run(run_nibble, "perplexity", path, text_of(shared), "--ctx", CTX, "--chunks", 2, "--kl-divergence-base", base)
    assert bases[0].read_bytes() == bases[1].read_bytes()


def test_texts_and_importances_are_those_without(run_nibble, pair, shared, tmp_path):
    texts, importances = [], []
    for path in pair("qwen35"):
        said = json.loads(run(run_nibble, "generate", path, "--prompt", "Once", "-n", 8, "--json").stdout)
        texts.append(said["models"][0]["text"])
        out = tmp_path / f"{path.stem}-imatrix.gguf"
        run(run_nibble, "imatrix", path, text_of(shared), "-o", out, "--ctx", CTX, "--chunks", 2)
        importances.append({name: tensor.data for name, tensor in tensors_in(out).items()})
    assert texts[0] and texts[0] == texts[1] and importances[0] == importances[1]


def test_caches_are_those_that_llama_cpp_allocates(run_nibble, run_llama, pair):
    path = pair("qwen35")[1]
    _, log = run_llama("llama-completion", "-m", path, "-c", 4096, "-n", 1, "-p", "a", "-no-cnv", "-v",
                       until="compute buffer size is")
    taken = sum(float(re.findall(rf"{kind} buffer size += +([\d.]+) MiB", log)[-1]) for kind in ("KV", "RS"))
    said = json.loads(run(run_nibble, "recommend", path, "--ctx", 4096, "--json").stdout)["types"][0]["kv_bytes"]
    assert abs(said / 2**20 - taken) < 0.011  # two numbers of two decimals


def test_the_folder_comes_back(run_nibble, make_model, pair, tmp_path):  # noqa: F811
    folder = make_model("qwen3next")
    run(run_nibble, "export", pair("qwen3next")[1], "--hf", tmp_path / "out", "--like", folder)
    ours, theirs = tensors_of(tmp_path / "out"), tensors_of(folder)
    assert ours.keys() == theirs.keys()
    for tensor in theirs:
        if tensor.startswith("mtp."):
            is_norm = "norm" in tensor  # stored as 1 + w
            rounded = (theirs[tensor] + np.float32(1)) - np.float32(1) if is_norm else theirs[tensor]
            assert np.array_equal(ours[tensor], rounded), tensor


def renamed(folder, out, change):
    """The folder with tensors of other names; None leaves one out."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folder, out)
    tensors = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, out / "model.safetensors")
    return out


@pytest.mark.parametrize("change, said", [
    (lambda name: None if name.startswith("mtp.") else name, "a Qwen3_5ForCausalLM without tensors mtp.*"),
    (lambda name: None if name == "mtp.fc.weight" else name, "tensor 'mtp.fc.weight' is missing"),
    (lambda name: name.replace("mtp.layers.0.mlp.up", "mtp.layers.1.mlp.up"),
     "tensor 'mtp.layers.1.mlp.up_proj.weight'"),
])
def test_what_cannot_be_carried_through_is_named(run_nibble, make_model, change, said, tmp_path):  # noqa: F811
    folder = renamed(make_model("qwen35"), tmp_path / "model", change)
    result = run_nibble("convert", folder, tmp_path / "out.gguf", "--mtp")
    assert result.returncode == 1 and said in result.stderr, result.stderr
    assert not (tmp_path / "out.gguf").exists()


CARRIED = "tensors that predict further tokens are carried through, rounded: they were not trained"


def short_run(model, text, out):
    return f"""model: {model}
output: {out}
quant: {{type: Q4_0}}
data: {{files: ["{text}"], sequence_length: {CTX}}}
batch_tokens: {CTX}
max_tokens: {2 * CTX}
"""


def test_a_configuration_takes_it_from_a_folder(run_nibble, make_model, pair, shared, tmp_path):  # noqa: F811
    text, config = text_of(shared), tmp_path / "run.yaml"
    config.write_text("mtp: true\n" + short_run(make_model("qwen35"), text, tmp_path / "run"))
    run(run_nibble, "train", config)
    assert CARRIED in run(run_nibble, "export", tmp_path / "run", tmp_path / "out.gguf").stderr
    assert "blk.5.nextn.eh_proj.weight" in tensors_in(tmp_path / "out.gguf")
    config.write_text("mtp: true\n" + short_run(pair("qwen35")[1], text, tmp_path / "run"))
    result = run_nibble("train", config)
    assert result.returncode == 2 and f"{config}:1:6: mtp: is for a Hugging Face folder" in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["qwen35", "qwen3next"])
def test_training_leaves_it_and_export_rounds_it(run_nibble, pair, shared, name, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(text_of(shared).read_text()[:60_000])
    exported = []
    for path in pair(name):
        config, out = tmp_path / f"{path.stem}.yaml", tmp_path / f"{path.stem}-q4.gguf"
        config.write_text(short_run(path, text, tmp_path / path.stem))
        run(run_nibble, "train", config)
        exported.append((run(run_nibble, "export", tmp_path / path.stem, out).stderr, out))
        run(run_nibble, "verify", out, "--against", tmp_path / path.stem)
    (said_without, without), (said, with_mtp) = exported
    assert CARRIED in said and CARRIED not in said_without
    assert np.array_equal(*(llama_log_probs(path, some_tokens(), tmp_path) for path in (without, with_mtp)))

    trained, carried = tensors_in(without), tensors_in(with_mtp)
    run(run_nibble, "quantize", "-q", pair(name)[1], tmp_path / "search.gguf", "Q4_0")
    search = tensors_in(tmp_path / "search.gguf")
    source = tensors_in(pair(name)[1])
    rounded = [tensor for tensor in carried.keys() - trained.keys()
               if carried[tensor].type != source[tensor].type]
    assert "blk.5.nextn.eh_proj.weight" in rounded
    assert len(rounded) == int(re.search(rf"(\d+) {CARRIED}", said).group(1))
    for tensor, packed in carried.items():
        wanted = trained.get(tensor, search[tensor])
        assert packed.type == wanted.type and packed.data == wanted.data, tensor
    assert any(trained[tensor].data != search[tensor].data for tensor in trained)


@pytest.mark.parametrize("method", ["gptq", "awq", "blockwise"])
def test_methods_that_look_at_texts_round_it_as_search_does(run_nibble, pair, shared, method, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(text_of(shared).read_text()[:20_000])
    quantized = []
    for path in pair("qwen35"):
        quantized.append(tmp_path / f"{path.stem}-q4.gguf")
        run(run_nibble, "quantize", "-q", path, quantized[-1], "Q4_0", "--method", method, "--calibration", text,
            "--calibration-tokens", 1024)
    run(run_nibble, "quantize", "-q", pair("qwen35")[1], tmp_path / "search.gguf", "Q4_0")
    without, with_mtp, search = map(tensors_in, (*quantized, tmp_path / "search.gguf"))
    for name, packed in with_mtp.items():
        assert packed.data == without.get(name, search[name]).data, name
