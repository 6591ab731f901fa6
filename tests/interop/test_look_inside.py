"""nibble inspect and nibble diff: every number against numpy on what the gguf package decodes."""

import json
import struct
import time

import gguf
import numpy as np
import pytest

NAMES = ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "output_norm.weight"]
SEED = 4
# Sums of up to 10^5 doubles in another order.
CLOSE = 1e-11


def random_quantized(type_name, rows, length, seed):
    """Any blocks of a type whose first field is a float16 d, with a d such as weights have: uint8 [rows, row bytes]."""
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * length // weights, size), dtype=np.uint8)
    scales = np.exp(random.standard_normal(len(blocks)) - 6).astype(np.float16)
    blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def write_model(path, tensors, metadata=None):
    """tensors: {name: float array, or (uint8 rows, type name)}."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    for name, data in tensors.items():
        if isinstance(data, tuple):
            writer.add_tensor(name, data[0], raw_dtype=gguf.GGMLQuantizationType[data[1]])
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights_of(path):
    """{name: float32 [rows, row length]}, by the gguf package."""
    return {
        t.name: np.asarray(gguf.dequantize(t.data, t.tensor_type), np.float32).reshape(-1, int(t.shape[0]))
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.fixture(scope="module")
def f32(tmp_path_factory):
    random = np.random.default_rng(SEED)
    shapes = [(300, 256), (256, 256), (256, 256), (256, 512), (256,)]
    tensors = {name: random.standard_normal(shape, dtype=np.float32) * 0.05 for name, shape in zip(NAMES, shapes)}
    return write_model(tmp_path_factory.mktemp("inside") / "f32.gguf", tensors, {"general.name": "one"})


@pytest.fixture(scope="module")
def quantized(f32, run_nibble, tmp_path_factory):
    def run(type_name):
        path = tmp_path_factory.mktemp("inside") / f"{type_name}.gguf"
        result = run_nibble("quantize", "-q", f32, path, type_name)
        assert result.returncode == 0, result.stderr
        return path

    return run


def as_json(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def bins_of(steps):
    """{start of the bin: count}: float32 magnitudes with their mantissas cut to two bits."""
    cut = (np.abs(steps.astype(np.float32)).view(np.uint32) & np.uint32(0x7FE00000)).view(np.float32)
    values, counts = np.unique(cut, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist()))


def codes_and_steps(type_name, blocks):
    """blocks: uint8 [n, block bytes] -> (int codes, float32 steps)."""
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32).ravel()
    if type_name == "Q8_0":
        return blocks[:, 2:].view(np.int8).astype(int).ravel(), d
    if type_name == "Q4_0":
        return np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(int).ravel() - 8, d
    if type_name == "Q6_K":
        d = blocks[:, 208:].copy().view(np.float16).astype(np.float32)
        steps = d * blocks[:, 192:208].view(np.int8).astype(np.float32)
        low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
        high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
        return (low.reshape(-1, 256) | high.reshape(-1, 256) << 4).astype(int).ravel() - 32, steps.ravel()
    raise NotImplementedError(type_name)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q6_K"])
def test_inspect_counts_codes_and_steps(type_name, run_nibble, tmp_path):
    rows = random_quantized(type_name, 200, 512, seed=7)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]][1]
    blocks = rows.reshape(-1, size)
    if type_name == "Q6_K":  # its d is the last field
        blocks[:, 208:] = np.full(len(blocks), 0.01, np.float16).view(np.uint8).reshape(-1, 2)
    path = write_model(tmp_path / "q.gguf", {"w.weight": (rows, type_name)})
    found = as_json(run_nibble("inspect", path, "--tensor", "w.weight", "--json"))["statistics"]
    codes, steps = codes_and_steps(type_name, blocks)
    values, counts = np.unique(codes, return_counts=True)
    assert [(c["code"], c["count"]) for c in found["codes"]] == list(zip(values.tolist(), counts.tolist()))
    assert found["zero_codes"] == np.mean(codes == 0)
    assert {s["from"]: s["count"] for s in found["steps"]} == bins_of(steps)
    assert found["steps_not_finite"] == 0


@pytest.mark.parametrize("type_name", ["F32", "Q8_0", "Q4_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"])
def test_inspect_gives_the_moments_of_the_weights(type_name, run_nibble, tmp_path):
    rows = random_quantized(type_name, 200, 512, seed=8) if type_name != "F32" else None
    data = (rows, type_name) if rows is not None else np.random.default_rng(8).standard_normal((200, 512), np.float32)
    path = write_model(tmp_path / "q.gguf", {"w.weight": data})
    weights = weights_of(path)["w.weight"].astype(np.float64)
    found = as_json(run_nibble("inspect", path, "--tensor", "w.weight", "--json"))["statistics"]
    assert found["mean"] == pytest.approx(weights.mean(), rel=CLOSE, abs=CLOSE * weights.std())
    assert found["std"] == pytest.approx(weights.std(), rel=CLOSE)
    assert (found["min"], found["max"]) == (weights.min(), weights.max())
    assert found["zero_weights"] == np.mean(weights == 0)
    assert found["not_finite"] == 0


def test_inspect_draws_the_histograms(quantized, run_nibble):
    path = quantized("Q4_0")
    text = run_nibble("inspect", path, "--tensor", "blk.0.attn_q.weight").stdout
    found = as_json(run_nibble("inspect", path, "--tensor", "blk.0.attn_q.weight", "--json"))["statistics"]
    lines = [line.split() for line in text.splitlines() if line.endswith("#")]
    assert [int(line[0]) for line in lines[: len(found["codes"])]] == [c["code"] for c in found["codes"]]
    assert len(lines) == len(found["codes"]) + len(found["steps"])
    bars = [len(line[-1]) for line in lines[: len(found["codes"])]]
    counts = [c["count"] for c in found["codes"]]
    assert max(bars) == 40 and bars == [-(-40 * count // max(counts)) for count in counts]


def errors_of(a, b):
    """relative error, SQNR, largest difference of two float64 arrays."""
    noise, signal = np.sum((b - a) ** 2), np.sum(a**2)
    return np.sqrt(noise / signal), 10 * np.log10(signal / noise), np.max(np.abs(b - a))


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0"])
def test_diff_full_agrees_with_numpy(type_name, f32, quantized, run_nibble):
    path = quantized(type_name)
    report = as_json(run_nibble("diff", f32, path, "--full", "--rows", "3", "--json"))
    a, b = weights_of(f32), weights_of(path)
    assert report["sampled"] is False and [t["name"] for t in report["tensors"]] == NAMES
    signal = noise = 0.0
    for tensor in report["tensors"]:
        left, right = a[tensor["name"]].astype(np.float64), b[tensor["name"]].astype(np.float64)
        assert tensor["compared"] == tensor["weights"] == left.size
        signal, noise = signal + np.sum(left**2), noise + np.sum((right - left) ** 2)
        if tensor["name"] == "output_norm.weight":
            assert tensor["relative_error"] == 0 and tensor["sqnr_db"] is None and tensor["worst_rows"] == []
            continue
        error, sqnr, largest = errors_of(left, right)
        assert tensor["relative_error"] == pytest.approx(error, rel=CLOSE)
        assert tensor["sqnr_db"] == pytest.approx(sqnr, rel=CLOSE)
        assert tensor["max_abs"] == largest
        of_rows = np.sqrt(np.sum((right - left) ** 2, axis=1) / np.sum(left**2, axis=1))
        worst = np.argsort(-of_rows, kind="stable")[:3]
        assert [row["row"] for row in tensor["worst_rows"]] == worst.tolist()
        assert [row["relative_error"] for row in tensor["worst_rows"]] == pytest.approx(of_rows[worst].tolist(), rel=CLOSE)
    assert report["overall"]["relative_error"] == pytest.approx(np.sqrt(noise / signal), rel=CLOSE)


def test_diff_samples_large_tensors_and_says_so(run_nibble, tmp_path):
    random = np.random.default_rng(SEED)
    weights = random.standard_normal((2000, 512), dtype=np.float32)
    a = write_model(tmp_path / "a.gguf", {"w.weight": weights})
    b = write_model(tmp_path / "b.gguf", {"w.weight": weights.astype(np.float16)})
    sampled = as_json(run_nibble("diff", a, b, "--json"))
    assert sampled["sampled"] and sampled["tensors"][0]["compared"] == 131072
    full = as_json(run_nibble("diff", a, b, "--full", "--json"))
    assert full["tensors"][0]["compared"] == weights.size
    # Rounding errors of Gaussian weights; 131072 squares of them know their mean to half a percent.
    assert sampled["overall"]["relative_error"] == pytest.approx(full["overall"]["relative_error"], rel=0.01)
    assert sampled["overall"]["relative_error"] != full["overall"]["relative_error"]
    text = run_nibble("diff", a, b).stdout
    assert "13 % of the weights were compared" in text and "--full" in text
    assert "were compared" not in run_nibble("diff", a, b, "--full").stdout
    named = as_json(run_nibble("diff", a, b, "--tensor", "w", "--json"))
    assert named["tensors"] == full["tensors"] and "metadata" not in named


def test_diff_finds_what_differs(f32, run_nibble, tmp_path):
    tensors = dict(weights_of(f32))
    tensors["output_norm.weight"] = tensors["output_norm.weight"].ravel()
    tensors["blk.0.attn_q.weight"] = tensors["blk.0.attn_q.weight"].copy()
    tensors["blk.0.attn_q.weight"][17, 3] = np.nan
    tensors["blk.0.attn_v.weight"] = tensors["blk.0.attn_v.weight"][:8]
    tensors["blk.0.extra.weight"] = np.arange(4, dtype=np.int32)
    del tensors["token_embd.weight"]
    other = write_model(tmp_path / "other.gguf", tensors, {"general.name": "two", "general.author": "me"})
    report = as_json(run_nibble("diff", f32, other, "--json"))
    assert report["metadata"] == {"general.name": {"a": "one", "b": "two"}, "general.author": {"b": "me"}}
    assert (report["only_in_a"], report["only_in_b"]) == (["token_embd.weight"], ["blk.0.extra.weight"])
    found = {t["name"]: t for t in report["tensors"]}
    assert found["blk.0.attn_q.weight"]["not_finite"] == 1 and found["blk.0.attn_q.weight"]["relative_error"] == 0
    assert found["blk.0.attn_v.weight"]["obstacle"] == "shapes differ: 256 x 256, 256 x 8"
    assert found["blk.0.ffn_down.weight"]["relative_error"] == 0
    text = run_nibble("diff", f32, other).stdout
    for wanted in ("general.author", "only in B: \"me\"", "token_embd.weight", "shapes differ", "1 NaN or infinite",
                   "2 tensors equal, 2 different, 1 only in A, 1 only in B"):
        assert wanted in text, text
    integers = as_json(run_nibble("diff", other, other, "--tensor", "extra", "--json"))
    assert integers["tensors"][0]["obstacle"] == "nibble does not decode I32"


def test_diff_of_a_file_with_itself(f32, run_nibble):
    text = run_nibble("diff", f32, f32, "--full").stdout
    assert "metadata: no difference" in text and "overall: no difference" in text
    assert "5 tensors equal, 0 different, 0 only in A, 0 only in B" in text


@pytest.mark.parametrize(
    "pattern, wanted",
    [
        ("blk.*", [1, 2, 3]), ("attn", [1, 2]), ("*attn_?.weight", [1, 2]),
        ("output_norm.weight", [4]), ("[to]*", [0, 4]),
    ],
)
def test_diff_takes_the_tensors_that_were_named(pattern, wanted, f32, run_nibble):
    report = as_json(run_nibble("diff", f32, f32, "--tensor", pattern, "--json"))
    assert [t["name"] for t in report["tensors"]] == [NAMES[i] for i in wanted]


def llama_7b_tensors(type_name):
    """(name, shape in GGUF's order, type) of a 7 B llama."""
    yield "token_embd.weight", (4096, 32000), type_name
    for layer in range(32):
        for name, shape in [
            ("attn_q", (4096, 4096)), ("attn_k", (4096, 4096)), ("attn_v", (4096, 4096)), ("attn_output", (4096, 4096)),
            ("ffn_gate", (4096, 11008)), ("ffn_up", (4096, 11008)), ("ffn_down", (11008, 4096)),
        ]:
            yield f"blk.{layer}.{name}.weight", shape, type_name
        yield f"blk.{layer}.attn_norm.weight", (4096,), "F32"
        yield f"blk.{layer}.ffn_norm.weight", (4096,), "F32"
    yield "output_norm.weight", (4096,), "F32"
    yield "output.weight", (4096, 32000), type_name


def write_sparse(path, tensors):
    """A GGUF file whose weights are a hole in the file."""
    def string(text):
        return struct.pack("<Q", len(text)) + text.encode()

    table, offset, count = b"", 0, 0
    for name, shape, type_name in tensors:
        kind = gguf.GGMLQuantizationType[type_name]
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        table += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += -(-int(np.prod(shape)) // weights * size // 32) * 32
        count += 1
    header = b"GGUF" + struct.pack("<IQQ", 3, count, 1) + string("general.architecture") + struct.pack("<I", 8) + string("llama")
    with path.open("wb") as file:
        file.write(header + table)
        file.truncate(-(-(len(header) + len(table)) // 32) * 32 + offset)


def test_files_of_7b_are_answered_at_once(run_nibble, tmp_path):
    write_sparse(tmp_path / "f16.gguf", llama_7b_tensors("F16"))
    write_sparse(tmp_path / "q6_k.gguf", llama_7b_tensors("Q6_K"))
    report = as_json(run_nibble("diff", tmp_path / "f16.gguf", tmp_path / "q6_k.gguf", "--json"))
    assert sum(t["weights"] for t in report["tensors"]) == 6738415616
    for arguments in (["diff", "f16.gguf", "q6_k.gguf"], ["inspect", "q6_k.gguf"],
                      ["inspect", "q6_k.gguf", "--tensor", "blk.7.ffn_up.weight"]):
        times = []
        for _ in range(3):  # the best of three: the machine may have other work
            start = time.monotonic()
            assert run_nibble(*arguments, cwd=tmp_path).returncode == 0
            times.append(time.monotonic() - start)
        assert min(times) < 2, arguments


def test_a_source_that_is_only_decoded(run_nibble, tmp_path):
    rows = random_quantized("IQ2_XS", 64, 512, seed=9)
    source = write_model(tmp_path / "iq.gguf", {"blk.0.attn_q.weight": (rows, "IQ2_XS")})
    out = tmp_path / "out.gguf"
    result = run_nibble("quantize", "-q", "--allow-requantize", source, out, "F32")
    assert result.returncode == 0, result.stderr
    assert np.array_equal(weights_of(out)["blk.0.attn_q.weight"], weights_of(source)["blk.0.attn_q.weight"])
    report = as_json(run_nibble("diff", source, out, "--full", "--json"))
    assert report["overall"]["relative_error"] == 0 and report["tensors"][0]["type_a"] == "IQ2_XS"


@pytest.mark.parametrize("type_name, nearest", [("iq2_s", "Q2_K"), ("IQ3_XXS", "Q3_K"), ("iq1_m", "TQ1_0")])
def test_encoding_what_is_only_decoded_is_refused(type_name, nearest, f32, run_nibble, tmp_path):
    out = tmp_path / "out.gguf"
    wanted = f"nibble decodes {type_name.upper()} but does not encode it; {nearest} is the nearest type that it encodes"
    # A file type gives some tensors another type than its own.
    anything = "but does not encode it"
    for arguments, wanted in ([out, type_name], anything), (["--tensor-type", f"attn_q={type_name}", out, "Q4_0"], wanted):
        result = run_nibble("quantize", "-q", f32, *arguments)
        assert result.returncode in (1, 2) and wanted in result.stderr
        assert len(result.stderr.splitlines()) == 1 and not out.exists()


@pytest.mark.parametrize(
    "arguments, status, wanted",
    [
        (["diff", "F32"], 2, "no B.gguf given"),
        (["diff", "F32", "nowhere.gguf"], 1, "nowhere.gguf: cannot open"),
        (["diff", "F32", "F32", "--rows", "-1"], 2, "--rows: wants 0 or more"),
        (["diff", "F32", "F32", "--tensor", "blk.0.attn_x.weight"], 2, "did you mean 'blk.0.attn_q.weight'"),
        (["inspect", "F32", "--tensor", "output_nrm.weight"], 1, "did you mean 'output_norm.weight'"),
    ],
)
def test_mistakes_are_one_line(arguments, status, wanted, f32, run_nibble):
    result = run_nibble(*[f32 if argument == "F32" else argument for argument in arguments])
    assert result.returncode == status and wanted in result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stdout == ""
