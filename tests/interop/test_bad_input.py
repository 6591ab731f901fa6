"""Bad input gets one clear line on stderr and exit status 1 or 2, and leaves nothing half-written."""

import json
import struct

import pytest

STEPS = 50  # a file is cut at every 1/50th of its length


@pytest.fixture
def refused(run_nibble, tmp_path):
    """Runs nibble and returns the line it refuses with. The old file OUT must stay, and nothing new may appear."""
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "out.gguf"
    out.write_bytes(b"old")

    def run(*arguments, status):
        result = run_nibble(*[out if argument == "OUT" else argument for argument in arguments])
        assert result.returncode == status, result.stderr
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("nibble: ") and len(lines[0]) < 500
        assert result.stdout == ""
        assert out.read_bytes() == b"old" and list(folder.iterdir()) == [out]
        return lines[0]

    return run


def refused_file(refused, tmp_path, data):
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    line = refused("quantize", "-q", path, "OUT", "Q4_0", status=1)
    assert str(path) in line
    return line


@pytest.mark.parametrize("step", range(STEPS))
def test_a_file_that_was_cut(step, stories260k, refused, tmp_path):
    data = stories260k.read_bytes()
    line = refused_file(refused, tmp_path, data[: len(data) * step // STEPS])
    assert "byte" in line


def header(num_tensors, num_keys):
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys)


def string(text):
    return struct.pack("<Q", len(text)) + text


def tensor_row(shape, offset=0):
    return string(b"w") + struct.pack(f"<I{len(shape)}qIQ", len(shape), *shape, 0, offset)


def test_wrong_magic(stories260k, refused, tmp_path):
    line = refused_file(refused, tmp_path, b"GGML" + stories260k.read_bytes()[4:])
    assert "wants the magic 'GGUF'" in line


def test_an_offset_past_the_end(refused, tmp_path):
    line = refused_file(refused, tmp_path, header(1, 0) + tensor_row([8], offset=1 << 40) + bytes(64))
    assert "tensor 'w'" in line and "at byte 1099511627776" in line


@pytest.mark.parametrize("shape", [[2**63 - 1], [2**62, 2], [2**32, 2**32], [2**21, 2**21, 2**21], [-(2**63)]])
def test_2_to_the_63_elements(shape, refused, tmp_path):
    line = refused_file(refused, tmp_path, header(1, 0) + tensor_row(shape) + bytes(64))
    assert "tensor 'w'" in line


def test_2_to_the_63_keys_and_tensors(refused, tmp_path):
    assert "the number of keys" in refused_file(refused, tmp_path, header(0, 1 << 63))
    assert "the number of tensors" in refused_file(refused, tmp_path, header(1 << 63, 0))


def test_a_metadata_string_of_2_to_the_40_bytes(refused, tmp_path):
    data = header(0, 1) + string(b"general.name") + struct.pack("<IQ", 8, 1 << 40) + b"short"
    line = refused_file(refused, tmp_path, data)
    assert "key 'general.name'" in line and "1099511627776 bytes" in line


def test_an_array_of_2_to_the_61_numbers(refused, tmp_path):
    data = header(0, 1) + string(b"ids") + struct.pack("<IIQ", 9, 5, 1 << 61)
    assert "key 'ids'" in refused_file(refused, tmp_path, data)


def test_a_nan_in_the_weights(stories260k, refused, tmp_path):
    data = bytearray(stories260k.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    line = refused_file(refused, tmp_path, bytes(data))
    assert "tensor '" in line and "row" in line


def test_files_that_are_not_there(refused, tmp_path):
    assert "No such file" in refused("quantize", "-q", tmp_path / "none.gguf", "OUT", "Q4_0", status=1)
    assert "is a folder" in refused("quantize", "-q", tmp_path, "OUT", "Q4_0", status=1)


def test_usage(stories260k, refused):
    assert "did you mean 'Q4_0'" in refused("quantize", "-q", stories260k, "OUT", "Q4_O", status=2)
    assert "did you mean 'search'" in refused("quantize", "-q", "--method", "serach", stories260k, "OUT", "Q4_0", status=2)
    assert "no TYPE" in refused("quantize", "-q", stories260k, "OUT", status=2)
    assert "does not exist" in refused("quantize", "-q", "--frobnicate", stories260k, "OUT", "Q4_0", status=2)
    assert "one too many" in refused("quantize", stories260k, "OUT", "Q4_0", "2", "more", status=2)
    assert "THREADS" in refused("quantize", stories260k, "OUT", "Q4_0", "many", status=2)
    assert "one too many" in refused("quantize", stories260k, "Q4_0", "2", "more", status=2)
    assert "did you mean 'Q4_K_S'" in refused("quantize", stories260k, "Q4_K_N", status=2)
    assert "no layer 5" in refused("quantize", "--prune-layers", "5", stories260k, "OUT", "Q4_0", status=2)
    assert "all 5 layers" in refused("quantize", "--prune-layers", "0,1,2,3,4", stories260k, "OUT", "Q4_0", status=2)
    assert "found 'x'" in refused("quantize", "--prune-layers", "1,x", stories260k, "OUT", "Q4_0", status=2)
    for override in ("key", "=int:1", "key=1", "key=int:x", "key=int:-1", "key=float:", "key=bool:1", "key=u8:1"):
        assert "--override-kv" in refused("quantize", "--override-kv", override, stories260k, "OUT", "Q4_0", status=2)
    assert "unknown tensor type" in refused(
        "quantize", "-q", "--output-tensor-type", "q9", stories260k, "OUT", "Q4_0", status=2
    )


def test_the_source_is_never_overwritten(stories260k, run_nibble, tmp_path):
    source = tmp_path / "model.gguf"
    source.write_bytes(stories260k.read_bytes())
    result = run_nibble("quantize", source, tmp_path / "." / "model.gguf", "Q4_0")
    assert result.returncode == 2 and "same file" in result.stderr
    assert source.read_bytes() == stories260k.read_bytes()


@pytest.fixture
def refused_perplexity(stories260k, refused, tmp_path):
    """The line that `nibble perplexity` refuses stories260K with, one piece of its bytes replaced, or another text."""

    def run(old=b"", new=b"", text="Once upon a time. " * 200):
        data = stories260k.read_bytes()
        assert old in data and len(old) == len(new)
        (tmp_path / "model.gguf").write_bytes(data.replace(old, new, 1) if old else data)
        (tmp_path / "text.txt").write_text(text)
        return refused("perplexity", "--ctx", "64", tmp_path / "model.gguf", tmp_path / "text.txt", status=1)

    return run


def test_a_missing_tokenizer(refused_perplexity):
    assert "no key 'tokenizer.ggml.model'" in refused_perplexity(b"tokenizer.ggml.model", b"tokenizer.ggml.mxdel")
    assert "no key 'tokenizer.ggml.tokens'" in refused_perplexity(b"tokenizer.ggml.tokens", b"tokenizer.ggml.txkens")


def test_an_unknown_architecture(refused_perplexity):
    architecture = string(b"general.architecture") + struct.pack("<I", 8)
    line = refused_perplexity(architecture + string(b"llama"), architecture + string(b"lxama"))
    assert "unknown architecture 'lxama'" in line


def test_a_missing_tensor(refused_perplexity):
    assert "tensor 'blk.0.attn_q.weight'" in refused_perplexity(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")


def test_a_text_shorter_than_one_sequence(refused_perplexity):
    line = refused_perplexity(text="Once")
    assert "text.txt" in line and "2 tokens" in line and "128" in line
    assert "text.txt" in refused_perplexity(text="")


@pytest.fixture
def refused_run(run_nibble, stories260k, shared, tmp_path):
    """The line that `nibble run` refuses a configuration with: the sound one below, with pieces of it replaced."""

    def run(*replaced, status, model=stories260k, train="Once upon a time. " * 2000, text="There was a dog. " * 2000):
        (tmp_path / "train.txt").write_text(train)
        (tmp_path / "test.txt").write_text(text)
        config = f"""\
model: {model}
output: {tmp_path / "out"}
quant: {{type: Q4_0}}
data:
  files: [{tmp_path / "train.txt"}]
  sequence_length: 256
compare: {{text: {tmp_path / "test.txt"}, ctx: 256, chunks: 2}}
batch_tokens: 256
micro_batch_tokens: 256
max_tokens: 512
"""
        for old, new in replaced:
            assert old in config
            config = config.replace(old, new, 1)
        (tmp_path / "bad.yaml").write_text(config)
        result = run_nibble("run", tmp_path / "bad.yaml")
        assert result.returncode == status, result.stderr
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("nibble: "), result.stderr
        assert result.stdout == "" and not (tmp_path / "out").exists()
        return result.stderr

    return run


def test_a_configuration_with_a_mistake(refused_run):
    line = refused_run(("sequence_length", "sequence_lenght"), status=2)
    assert "bad.yaml:6" in line and "sequence_lenght" in line and "did you mean 'sequence_length'" in line
    line = refused_run(("256\ncompare", "two\ncompare"), status=2)
    assert "bad.yaml:6" in line and "'two'" in line
    assert "bad.yaml:2" in refused_run(("model:", "model: ["), status=2)
    assert "did you mean 'Q4_0'" in refused_run(("Q4_0", "Q4_O"), status=2)
    assert "max_tokens: 100 is less than one step" in refused_run(("max_tokens: 512", "max_tokens: 100"), status=2)


def test_a_run_on_texts_that_are_too_short(refused_run):
    line = refused_run(status=1, train="Once upon a time")
    assert "data.files" in line and "too few for one training sequence of 256" in line
    line = refused_run(status=1, text="Once upon a time")
    assert "test.txt" in line and "needs at least 512" in line


def test_a_run_on_a_model_that_cannot_be_run(refused_run, stories260k, tmp_path):
    model = tmp_path / "model.gguf"
    data = stories260k.read_bytes()
    model.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight", 1))
    assert "tensor 'blk.0.attn_q.weight'" in refused_run(status=1, model=model)
    model.write_bytes(data.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.txkens", 1))
    assert "no key 'tokenizer.ggml.tokens'" in refused_run(status=1, model=model)
    model.write_bytes(data[: len(data) // 2])
    assert "model.gguf" in refused_run(status=1, model=model)


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "-q", "MODEL", "OUT", "Q4_0"),
        ("perplexity", "MODEL", "MODEL"),
        ("compare", "MODEL", "--base", "MODEL", "--text", "MODEL"),
        ("bench", "--training", "--model", "MODEL"),
    ],
)
def test_a_device_that_is_not_there(command, stories260k, run_nibble, refused):
    arguments = [stories260k if argument == "MODEL" else argument for argument in command]
    line = refused(*arguments, "--device", "cuda:x", status=2)
    assert "cpu, cuda, cuda:N or auto" in line
    missing = json.loads(run_nibble("verify", stories260k, "--json").stdout)["gpu_skipped"]
    if not missing:
        pytest.skip("this machine has a GPU")
    assert missing in refused(*arguments, "--device", "cuda", status=2)
