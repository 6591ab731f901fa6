"""A teacher of one's own, frozen tensors and mixtures of texts, as a configuration asks for them."""

import gguf_table
import pytest


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
