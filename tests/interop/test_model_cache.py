"""Models by the name of their repository, where huggingface_hub itself finds what was downloaded."""

import json
import shutil

import pytest

CONFIG = """
model: {model}
output: {output}
quant: {{type: Q4_0}}
data: {{files: ["{text}"], sequence_length: 64}}
batch_tokens: 128
max_tokens: 1024
"""


@pytest.fixture
def cached(tmp_path, monkeypatch, stories260k):
    """Repository o/stories-GGUF in a cache, as huggingface_hub finds it: the file's path."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--o--stories-GGUF"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    shutil.copy(stories260k, repository / "blobs" / "e3b0")
    (snapshot / "stories-F32.gguf").symlink_to("../../blobs/e3b0")
    found = huggingface_hub.try_to_load_from_cache("o/stories-GGUF", "stories-F32.gguf", cache_dir=tmp_path / "hub")
    assert found == str(snapshot / "stories-F32.gguf")
    return found


@pytest.mark.parametrize("name", ["o/stories-GGUF", "o/stories-GGUF:f32"])
def test_commands_take_a_repository(run_nibble, cached, tmp_path, name):
    by_name, by_path = (run_nibble("inspect", model, "--json") for model in (name, cached))
    assert by_name.returncode == 0 and by_name.stdout == by_path.stdout, by_name.stderr
    assert run_nibble("quantize", name, tmp_path / "q4.gguf", "Q4_0").returncode == 0
    assert json.loads(run_nibble("diff", name, cached, "--json").stdout)
    assert run_nibble("generate", name, "-p", "Once", "-n", "4").returncode == 0


def test_configurations_take_one(run_nibble, cached, tmp_path, shared):
    config = tmp_path / "run.yaml"
    text = shared / "text" / "tinystories" / "valid_v1_nosep.txt"
    config.write_text(CONFIG.format(model="o/stories-GGUF", output=tmp_path / "run", text=text))
    result = run_nibble("train", config, "--set", "data.max_bytes=20000")
    assert result.returncode == 0, result.stderr
    assert run_nibble("export", tmp_path / "run", tmp_path / "out.gguf").returncode == 0


def test_what_is_not_there_is_named_with_its_download(run_nibble, cached, tmp_path):
    result = run_nibble("inspect", "Qwen/Qwen3-0.6B")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("download it with: hf download Qwen/Qwen3-0.6B\n")
    result = run_nibble("perplexity", "o/stories-GGUF:Q8_0", "text")
    assert result.stderr.endswith("hf download o/stories-GGUF --include '*Q8_0*'\n")
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(model="Qwen/Qwen3-0.6B", output=tmp_path / "run", text="text"))
    result = run_nibble("train", config)
    assert result.returncode == 2 and "run.yaml:2" in result.stderr and "hf download Qwen/Qwen3-0.6B" in result.stderr
