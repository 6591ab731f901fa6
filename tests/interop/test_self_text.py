"""A model that writes its own training text: data.files names self."""

import json

import pytest

CONFIG = """
model: {model}
output: {output}
quant: {{type: Q4_0}}
data: {{files: [{files}], sequence_length: 64, held_out: 0.1}}
self: {{tokens: 1500, temperature: 0.9}}
batch_tokens: 128
max_tokens: 1024
evaluate_every: 0
checkpoint_every: 2
{more}
"""


@pytest.fixture
def train(run_nibble, stories260k, tmp_path, one_thread):
    def run(name, *arguments, files="self", more="", command="train"):
        config = tmp_path / f"{name}.yaml"
        config.write_text(CONFIG.format(model=stories260k, output=tmp_path / name, files=files, more=more))
        return run_nibble(command, config, *arguments)

    return run


def test_trains_on_what_it_wrote(train, tmp_path):
    result = train("own")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "own" / "self.jsonl").read_text().splitlines()]
    assert f"self.jsonl: {len(rows)} texts that the model wrote at temperature 0.9" in result.stderr
    assert len({row["text"] for row in rows}) == len(rows) > 20
    # It is a model of children's stories.
    words = " ".join(row["text"] for row in rows).split()
    assert sum(word in ("was", "the", "and", "to", "a", "she", "he") for word in words) > len(words) / 10
    metrics = [json.loads(line) for line in (tmp_path / "own" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 8 and metrics[-1]["held_out_loss"] < metrics[0]["held_out_loss"]
    assert "files: [self]" in (tmp_path / "own" / "config.yaml").read_text()


def test_a_resumed_run_keeps_its_text(train, tmp_path):
    assert train("own").returncode == 0
    text = (tmp_path / "own" / "self.jsonl").read_bytes()
    result = train("own", "--resume")
    assert result.returncode == 0 and "texts that the model wrote" not in result.stderr, result.stderr
    assert (tmp_path / "own" / "self.jsonl").read_bytes() == text
    result = train("own", "--resume", "--set", "self.temperature=0.5")
    assert result.returncode == 2 and "self: differs from that of the run in" in result.stderr
    assert train("own").returncode == 0  # anew, from the same seed
    assert (tmp_path / "own" / "self.jsonl").read_bytes() == text


def test_beside_other_text(train, shared, tmp_path):
    stories = tmp_path / "stories.txt"
    stories.write_text((shared / "text" / "tinystories" / "valid_v1_nosep.txt").read_text()[:20000])
    result = train("both", files=f"self, {stories}")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "both" / "self.jsonl").exists()


def test_a_whole_run(train, shared, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text((shared / "text" / "tinystories" / "valid_v1_nosep.txt").read_text()[:8000])
    result = train("whole", command="run", more=f"compare: {{text: {text}, ctx: 64}}\nbaselines: [ggml]")
    assert result.returncode == 0, result.stderr
    assert "files: [self]" in (tmp_path / "whole" / "config.yaml").read_text()
