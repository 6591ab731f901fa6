"""The part of a model that sees: nibble convert --mmproj against llama.cpp's converter and its mtmd, and towers that export
--hf carries through."""

import ctypes
import json
import re
import shutil

import numpy as np
import pytest

from test_convert import (  # noqa: F401
    CTX, assert_same_file, contents_of, converted, converter, make_model, run_converter, text_of, torch_env, transformers_log_probs,
)
from test_hf_folder import export, tensors_of
from test_model import TOLERANCE, largest_difference

NAMES = ["gemma3 4b", "qwen35 with vision"]


def is_of_tower(tensor):
    return any(part in tensor for part in ("vision_tower.", "multi_modal_projector.", "visual."))


def change_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def with_published_names(folder, out):
    """transformers 5 leaves a part of SigLIP's names out, which the folders on the hub and llama.cpp's converter have."""
    shutil.copytree(folder, out)
    for path in out.glob("model*.safetensors"):
        change_header(path, lambda header: {
            re.sub("^vision_tower[.]", "vision_tower.vision_model.", name): entry
            for name, entry in header.items()})
    return out


def convert_both(run_nibble, folder, tmp_path, *arguments):
    model, tower = tmp_path / "model.gguf", tmp_path / "mmproj.gguf"
    result = run_nibble("convert", folder, model, "--mmproj", tower, *arguments)
    assert result.returncode == 0, result.stderr
    return model, tower, result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_the_tower_is_that_of_llama_cpps_converter(
    run_nibble, torch_env, converter, make_model, name, outtype, tmp_path  # noqa: F811
):
    folder = with_published_names(make_model(name), tmp_path / make_model(name).name)
    _, tower, _ = convert_both(run_nibble, folder, tmp_path, "--outtype", outtype)
    run_converter(converter, torch_env, folder, tmp_path / "theirs.gguf", outtype, "--mmproj", has_mtp=True)
    assert_same_file(tower, tmp_path / "theirs.gguf")
    _, again, _ = convert_both(run_nibble, make_model(name), tmp_path, "--outtype", outtype)
    assert_same_file(again, tmp_path / "theirs.gguf")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_said(run_nibble, make_model, name, tmp_path):  # noqa: F811
    _, tower, result = convert_both(run_nibble, make_model(name), tmp_path)
    assert f"{tower}: the tower that sees, " in result.stdout and "left out: the file holds" not in result.stderr
    _, _, result = convert_both(run_nibble, make_model(name), tmp_path, "--json")
    answer = json.loads(result.stdout)["mmproj"]
    assert answer["name"] == str(tower) and answer["tensors"] > 20 and answer["type"] == "BF16"


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_takes_it(run_nibble, make_model, name, tmp_path):  # noqa: F811
    mtmd = pytest.importorskip("llama_cpp.mtmd_cpp")
    llama = pytest.importorskip("llama_cpp")
    model, tower, _ = convert_both(run_nibble, make_model(name), tmp_path, "--outtype", "f16")
    loaded = llama.llama_model_load_from_file(str(model).encode(), llama.llama_model_default_params())
    parameters = mtmd.mtmd_context_params_default()
    parameters.use_gpu, parameters.warmup = False, False
    context = mtmd.mtmd_init_from_file(str(tower).encode(), loaded, parameters)
    try:
        assert context and mtmd.mtmd_support_vision(context)
    finally:
        mtmd.mtmd_free(context)
        llama.llama_model_free(loaded)


def test_mistakes_are_named(run_nibble, make_model, tmp_path):  # noqa: F811
    def refused(folder, *arguments):
        result = run_nibble("convert", folder, tmp_path / "m.gguf", "--mmproj", tmp_path / "t.gguf", *arguments)
        assert result.returncode == 1
        assert not list(tmp_path.glob("*.gguf*"))
        return result.stderr

    assert "no 'vision_config'" in refused(make_model("llama"))
    folder = shutil.copytree(make_model("qwen35 with vision"), tmp_path / "folder")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, "x", 0.5], "image_std": [1, 1, 1]}')
    assert "preprocessor_config.json: key 'image_mean': wants numbers, found string" in refused(folder)
    (folder / "preprocessor_config.json").unlink()
    assert f"{folder}: has neither preprocessor_config.json nor" in refused(folder)
    shutil.copy(make_model("qwen35 with vision") / "preprocessor_config.json", folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value, complaint in [
        ("depth", 2, "is missing"), ("depth", 2**31 - 1, "the checkpoint has fewer tensors"), ("hidden_size", 34, "another shape"),
        ("num_position_embeddings", 17, "is no square"), ("temporal_patch_size", 3, "temporal_patch_size"),
        ("deepstack_visual_indexes", [0], "deepstack_visual_indexes"), ("spatial_merge_size", 2**31 - 1, "spatial_merge_size"),
        ("patch_size", 0, "must be positive"),
    ]:
        changed = {**config, "vision_config": {**config["vision_config"], key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        assert complaint in refused(folder), key
    for same in (tmp_path / "m.gguf", f"{tmp_path}/folder/../m.gguf"):
        result = run_nibble("convert", folder, tmp_path / "m.gguf", "--mmproj", same)
        assert result.returncode == 2 and "a file of its own" in result.stderr


def test_a_packed_tower_is_not_exported(run_nibble, converted, tmp_path):  # noqa: F811
    model = converted("qwen35 with vision")
    for path in (folder := shutil.copytree(model.folder, tmp_path / "folder")).glob("model*.safetensors"):
        change_header(path, lambda header: {
            name: {**entry, "dtype": "I16"} if is_of_tower(name) else entry for name, entry in header.items()})
    result = run_nibble("export", model.path, "--hf", tmp_path / "out", "--like", folder)
    assert result.returncode == 1 and "': is I16, wanted F32, F16 or BF16" in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_export_carries_it_through(run_nibble, torch_env, converted, shared, name, tmp_path):  # noqa: F811
    """The tower's bytes as they were beside what the quantized language model decodes to, in a folder that transformers
    computes with as nibble does with the file."""
    model, path = converted(name), tmp_path / "q4.gguf"
    assert run_nibble("quantize", "-q", model.path, path, "Q4_0").returncode == 0
    out = export(run_nibble, path, tmp_path / "out", model.folder, "--max-shard-size", "4MB")
    ours, theirs = tensors_of(out), tensors_of(model.folder)
    assert ours.keys() == {tensor for tensor in theirs if not tensor.startswith("mtp.")}
    assert sum(map(is_of_tower, ours)) > 20
    for tensor in filter(is_of_tower, ours):
        assert np.array_equal(ours[tensor], theirs[tensor]), tensor
    assert any(not np.array_equal(ours[tensor], theirs[tensor]) for tensor in ours if not is_of_tower(tensor))
    assert largest_difference(
        run_nibble, path, text_of(shared), tmp_path, chunks=2, ctx=CTX, bos=model.bos,
        log_probs=lambda tokens: transformers_log_probs(torch_env, out, tokens, tmp_path)) < TOLERANCE
    towers = []
    for folder in (out, model.folder):
        _, tower, _ = convert_both(run_nibble, folder, tmp_path, "--outtype", "f32")
        towers.append(contents_of(tower)[1])
    assert towers[0] == towers[1]
