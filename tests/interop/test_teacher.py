"""A teacher of one's own, frozen tensors and mixtures of texts, as a configuration asks for them."""

import json
import re

import gguf_table
import numpy
import pytest
from safetensors import safe_open


@pytest.fixture
def train(run_nibble, stories260k, shared, tmp_path, one_thread):
    """train(name, yaml) -> the process; the run folder is tmp_path / name."""

    def run(name, more):
        config = tmp_path / f"{name}.yaml"
        config.write_text(
            f"model: {stories260k}\noutput: {tmp_path / name}\n"
            "data: {files: [%s], sequence_length: 64, max_bytes: 60000}\n"
            "batch_tokens: 128\nmax_tokens: 1024\nevaluate_every: 0\n%s\n"
            % (shared / "text" / "tinystories" / "train_v1_first2MiB.txt", more)
        )
        return run_nibble("train", config)

    return run


def exported(run_nibble, folder):
    out = folder.with_suffix(".gguf")
    result = run_nibble("export", folder, out)
    assert result.returncode == 0, result.stderr
    return {name: bytes(tensor.data) for name, tensor in gguf_table.read(out)[1].items()}


def test_a_teacher_that_is_the_model_itself_changes_nothing(train, run_nibble, stories260k, tmp_path):
    assert train("own", "quant: {type: Q4_0}").returncode == 0
    result = train("taught", f"quant: {{type: Q4_0}}\nteacher: {stories260k}")
    assert result.returncode == 0, result.stderr
    assert exported(run_nibble, tmp_path / "own") == exported(run_nibble, tmp_path / "taught")


def test_another_teacher_teaches_something_else(train, run_nibble, stories260k, tmp_path):
    assert train("own", "quant: {type: Q4_0}").returncode == 0
    other = tmp_path / "other.gguf"
    assert run_nibble("quantize", stories260k, other, "Q4_0", "--method", "ggml").returncode == 0
    result = train("taught", f"quant: {{type: Q4_0}}\nteacher: {other}")
    assert result.returncode == 0, result.stderr
    assert exported(run_nibble, tmp_path / "own") != exported(run_nibble, tmp_path / "taught")


def test_a_teacher_with_other_tokens(train, smollm2_q4_1, tmp_path):
    result = train("taught", f"quant: {{type: Q4_0}}\nteacher: {smollm2_q4_1}")
    assert result.returncode == 1
    assert "it has 49152 tokens, the model 512" in result.stderr
    assert not (tmp_path / "taught" / "checkpoints").exists()


ASKED_ONCE = "quant: {type: Q4_0}\nloss: {teacher_top_k: %s%s}"


def test_what_a_teacher_keeps_on_disk(train, tmp_path):
    result = train("kept", ASKED_ONCE % (16, ""))
    assert result.returncode == 0, result.stderr
    line = re.search(
        r"teacher cache (\S+): the 16 likeliest of 512 tokens, 68 bytes a position: (\S+ \S+) for the (\d+) that are read, which the teacher "
        r"is asked for; (\S+ \S+) for the whole text",
        result.stderr,
    )
    assert line, result.stderr
    hidden = re.search(
        r"top 16 tokens: (\S+) % of the teacher's probability is beyond them; KL at the start on \d+ held-out positions: "
        r"(\S+), of which (\S+) is not seen",
        result.stderr,
    )
    assert hidden, result.stderr
    assert 1 < float(hidden[1]) < 50 and 0 < float(hidden[3]) < float(hidden[2])
    with safe_open(line[1], "numpy") as file:
        records = numpy.concatenate([file.get_tensor(name) for name in ("records", "held_out")])
        assert len(file.get_tensor("sequences")) == 1024 / 64
    assert records.shape == (int(line[3]), 68)
    assert f"{records.nbytes / 1e3:.1f} kB" == line[2]
    ids = records[:, 36:].copy().view("<u2")
    assert ids.max() < 512 and (numpy.diff(ids.astype(int)) > 0).all()
    probabilities = numpy.exp(records[:, 4:36].copy().view("<f2").astype(float)).sum(1)
    others = numpy.exp(records[:, :4].copy().view("<f4").astype(float))[:, 0]
    assert (others > 0).all() and (probabilities >= 1).all()
    # Of the held-out positions, which the file has last, the line says it in three digits.
    shares = (others / (probabilities + others))[1024:]
    assert float(hidden[1]) == pytest.approx(100 * shares[:2048].mean(), rel=0.006)


def test_a_second_run_asks_no_teacher(train, run_nibble, tmp_path):
    shared_file = f", teacher_cache: {tmp_path / 'answers.safetensors'}"
    first = train("first", ASKED_ONCE % (16, shared_file))
    assert first.returncode == 0 and "which the teacher is asked for" in first.stderr, first.stderr
    written = (tmp_path / "answers.safetensors").stat().st_mtime_ns
    second = train("second", ASKED_ONCE % (16, shared_file))
    assert second.returncode == 0 and "which are there" in second.stderr, second.stderr
    assert (tmp_path / "answers.safetensors").stat().st_mtime_ns == written
    assert exported(run_nibble, tmp_path / "first") == exported(run_nibble, tmp_path / "second")
    other = train("other", ASKED_ONCE % (17, shared_file))
    assert other.returncode == 1 and "is of teacher_top_k 16, wanted 17; remove the file or name another" in other.stderr
    damaged = bytearray((tmp_path / "answers.safetensors").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "answers.safetensors").write_bytes(damaged)
    result = train("third", ASKED_ONCE % (16, shared_file))
    assert result.returncode == 1 and "checksum" in result.stderr, result.stderr


def test_what_it_would_take_is_said_before(run_nibble, stories260k, shared, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {stories260k}\ndata: {{files: [{shared / 'text' / 'tinystories' / 'valid_v1_nosep.txt'}]}}\n")

    def forecast(k):
        return json.loads(run_nibble("train", config, "--dry-run", "--json", "--set", f"loss.teacher_top_k={k}").stdout)

    whole, once = forecast(0), forecast(16)
    assert (whole["record_bytes"], whole["asking_bytes"], once["record_bytes"]) == (0, 0, 68)
    teacher = 4 * once["weights"]
    assert once["asking_bytes"] > teacher and once["memory_bytes"] <= whole["memory_bytes"] - teacher


def test_all_tokens_teach_what_the_teacher_does(train, run_nibble, tmp_path):
    """float16 moves what is learned by little, beside what leaving tokens out does."""
    runs = {"whole": "quant: {type: Q4_0}", "all": ASKED_ONCE % (512, ""), "few": ASKED_ONCE % (1, "")}
    weights = {}
    for name, more in runs.items():
        assert train(name, more).returncode == 0
        weights[name] = exported(run_nibble, tmp_path / name)

    def differing(a, b):
        pairs = [(numpy.frombuffer(weights[a][n], "u1"), numpy.frombuffer(weights[b][n], "u1")) for n in weights[a]]
        return sum((x != y).sum() for x, y in pairs)

    assert differing("all", "whole") < differing("few", "whole") / 2


def test_frozen_tensors_are_those_of_the_start(train, run_nibble, tmp_path):
    result = train("frozen", r'quant: {type: Q4_0, frozen: ["blk\\.[0-2]\\.", "^token_embd"]}')
    assert result.returncode == 0, result.stderr
    after = exported(run_nibble, tmp_path / "frozen")
    before = {
        name: bytes(tensor.data) for name, tensor in gguf_table.read(tmp_path / "frozen" / "start.gguf")[1].items()
    }
    frozen = {name for name in after if name.startswith(("blk.0.", "blk.1.", "blk.2.", "token_embd"))}
    assert all(after[name] == before[name] for name in frozen)
    assert all(after[name] != before[name] for name in after if name not in frozen and "norm" not in name)


@pytest.mark.parametrize(
    "more, message",
    [
        ('quant: {type: Q4_0, frozen: ["blk.9."]}', "quant.frozen: 'blk.9.' names no tensor of the model"),
        ('quant: {type: Q4_0, frozen: ["("]}', "quant.frozen: '(' is no regular expression"),
        ('quant: {type: Q4_0, frozen: ["."]}', "quant.frozen leaves nothing that trains"),
        (ASKED_ONCE % (513, ""), "loss.teacher_top_k wants 1 to 512, the model's tokens, found 513"),
        (ASKED_ONCE % (-1, ""), "loss.teacher_top_k: wants 0 to 1048576, found '-1'"),
        (ASKED_ONCE % (0, ", teacher_cache: x"), "loss.teacher_cache: has no effect, since loss.teacher_top_k is 0"),
        ("loss: {kind: ce, teacher_top_k: 4}", "loss.teacher_top_k: has no effect, since loss.kind is ce"),
        ("quant: {type: Q4_0}\nteacher: nowhere.gguf", "teacher: no such file: nowhere.gguf"),
        ("quant: {type: Q4_0}\nloss: {kind: ce}\nteacher: x.gguf", "teacher: has no effect, since loss.kind is ce"),
    ],
)
def test_refusals(train, more, message):
    result = train("refused", more)
    assert result.returncode == 2 and message in result.stderr, result.stderr


@pytest.mark.parametrize(
    "data, message",
    [
        ("weights: [1]", "data.weights: wants one for each of the 2 entries of data.files, found 1"),
        ("weights: [1, 0]", "data.weights: wants numbers above 0, found 0"),
        ("weights: [1, x]", "data.weights: wants a number, found"),
        ("weights: [1, 2], max_bytes: 5000", "data.max_bytes: counts all files together"),
    ],
)
def test_refused_mixtures(run_nibble, stories260k, tmp_path, data, message):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Once upon a time. " * 500)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {stories260k}\ndata: {{files: [{tmp_path / 'a.txt'}, {tmp_path / 'b.txt'}], sequence_length: 64, {data}}}\n"
    )
    result = run_nibble("train", config)
    assert result.returncode == 2 and message in result.stderr, result.stderr


def test_a_mixture_trains(run_nibble, stories260k, shared, tmp_path, one_thread):
    stories = (shared / "text" / "tinystories" / "train_v1_first2MiB.txt").read_text()
    (tmp_path / "a.txt").write_text(stories[:40000])
    (tmp_path / "b.txt").write_text(stories[40000:60000])
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {stories260k}\noutput: {tmp_path / 'run'}\nquant: {{type: Q4_0}}\n"
        f"data: {{files: [{tmp_path / 'a.txt'}, {tmp_path / 'b.txt'}], sequence_length: 64, weights: [1, 3]}}\n"
        "batch_tokens: 128\nmax_tokens: 1024\nevaluate_every: 4\n"
    )
    result = run_nibble("train", config)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
