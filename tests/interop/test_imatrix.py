"""Importance matrices against the real llama-imatrix and llama-quantize, both ways."""

import json
import subprocess

import gguf
import gguf_table
import numpy as np
import pytest
from generated_llama import write_llama
from test_quantize import MIXES, SHAPE, TYPES, assert_same_file

CHUNKS, CTX = 6, 128
IMATRIX = ["-c", CTX, "--chunks", CHUNKS]


@pytest.fixture(scope="module")
def llama_quantize(llama_bin, llama_env):
    def run(*arguments):
        result = subprocess.run(
            [llama_bin("llama-quantize"), *map(str, arguments)], env=llama_env, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr

    return run


@pytest.fixture(scope="module")
def text(shared):
    return shared / "text" / "tinystories" / "valid_v1_nosep.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("imatrix")


@pytest.fixture(scope="module")
def wide(stories260k, folder):
    """Eight layers, of which the first gets a min at Q4_0 and Q5_0; rows that 256 divides."""
    path = folder / "wide.gguf"
    write_llama(path, stories260k, **{**SHAPE, "layers": 8}, dtype=np.float32, tied=False)
    return path


@pytest.fixture(scope="module")
def mixture(stories260k, folder):
    """Eight experts, of which no position reaches the first and the last."""
    path = folder / "mixture.gguf"
    write_llama(path, stories260k, **SHAPE, dtype=np.float32, experts=8)
    return path


@pytest.fixture(params=["stories260k", "wide"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def llama_imatrix(llama_bin, llama_env, text, folder):
    """llama-imatrix's file for a model, made once, with float32 keys and values."""

    def run(model, ending="gguf"):
        out = folder / f"theirs-{model.stem}.{ending}"
        if not out.exists():
            subprocess.run(
                [llama_bin("llama-imatrix"), "-m", model, "-f", text, "-o", out, "--output-format", ending, "--no-ppl",
                 *map(str, IMATRIX), "-ctk", "f32", "-ctv", "f32", "-fa", "off"],
                env=llama_env, check=True, capture_output=True, stdin=subprocess.DEVNULL,
            )
        return out

    return run


@pytest.fixture(scope="module")
def our_imatrix(run_nibble, text, folder):
    def run(model):
        out = folder / f"ours-{model.stem}.gguf"
        if not out.exists():
            result = run_nibble("imatrix", model, text, "-o", out, *IMATRIX)
            assert result.returncode == 0, result.stderr
        return out

    return run


def floats(tensor):
    return np.frombuffer(tensor.data, np.float32)


def test_sums_agree_with_llama_imatrix(model, llama_imatrix, our_imatrix):
    our_metadata, ours = gguf_table.read(our_imatrix(model))
    their_metadata, theirs = gguf_table.read(llama_imatrix(model))
    assert our_metadata == their_metadata
    assert our_metadata["imatrix.chunk_count"][1] == CHUNKS and our_metadata["imatrix.chunk_size"][1] == CTX
    # The same tensors in the same order, of the same shapes.
    assert [(name, t.type, t.shape) for name, t in ours.items()] == [
        (name, t.type, t.shape) for name, t in theirs.items()
    ]
    assert len(ours) == 2 * 7 * {"stories260K-f32.v3": 5, "wide": 8}[model.stem]
    for name, tensor in ours.items():
        if name.endswith(".counts"):
            assert tensor == theirs[name] and floats(tensor) == [CHUNKS * CTX]
        else:
            # llama-imatrix adds up 768 squares in float32: 768 * 2^-24 is 5e-5. The rest is for the forward passes.
            np.testing.assert_allclose(floats(tensor), floats(theirs[name]), rtol=1e-4, err_msg=name)


def test_experts_sums_agree_with_llama_imatrix(mixture, llama_imatrix, our_imatrix):
    _, ours = gguf_table.read(our_imatrix(mixture))
    _, theirs = gguf_table.read(llama_imatrix(mixture))
    assert [(name, t.type, t.shape) for name, t in ours.items()] == [
        (name, t.type, t.shape) for name, t in theirs.items()
    ]
    assert sum("_exps." in name for name in ours) == 2 * 3 * SHAPE["layers"]
    for name, tensor in ours.items():
        if "_exps." not in name:
            continue
        counts = floats(ours[name.replace("in_sum2", "counts")])
        if name.endswith(".counts"):
            assert counts.sum() == 2 * CHUNKS * CTX and counts[0] == counts[7] == 0 and counts[1:7].all()
            # Sums in another order may have a position near a tie go to another expert.
            np.testing.assert_allclose(counts, floats(theirs[name]), atol=1, err_msg=name)
        else:
            # One position more or less of the tens that an expert has is what 1 % is for.
            rows, columns = len(counts), tensor.shape[0]
            sums, wanted = (floats(table[name]).reshape(rows, columns) for table in (ours, theirs))
            np.testing.assert_allclose(sums.sum(1), wanted.sum(1), rtol=0.01, err_msg=name)


def test_experts_that_were_not_reached_are_named(mixture, our_imatrix, run_nibble, llama_quantize, tmp_path):
    imatrix = our_imatrix(mixture)
    llama_quantize("--imatrix", imatrix, mixture, tmp_path / "theirs.gguf", "Q4_0")
    ours = run_nibble("quantize", "--method", "ggml", "--imatrix", imatrix, mixture, tmp_path / "ours.gguf", "Q4_0")
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    named = [line for line in ours.stderr.splitlines() if "no activation reached expert 0, 7" in line]
    assert len(named) == 3 * SHAPE["layers"]


# Q1_0 wants rows that 128 divides, which not every model here has.
@pytest.mark.parametrize("type_name", TYPES + [mix for mix in MIXES if mix != "Q1_0"])
def test_every_type_equals_llama_quantize(model, type_name, our_imatrix, run_nibble, llama_quantize, tmp_path):
    """Ours is taken by llama-quantize, and both make the same bytes of it."""
    imatrix = our_imatrix(model)
    llama_quantize("--imatrix", imatrix, model, tmp_path / "theirs.gguf", type_name)
    ours = run_nibble(
        "quantize", "--method", "ggml", "--imatrix", imatrix, model, tmp_path / "ours.gguf", type_name
    )
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert gguf_table.read(tmp_path / "ours.gguf")[0]["quantize.imatrix.file"] == (8, str(imatrix).encode()[:127])


@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_1"])
@pytest.mark.parametrize("ending", ["gguf", "dat"])
@pytest.mark.parametrize("flags", [
    [], ["--include-weights", "attn_q"], ["--include-weights", "blk.0.", "--include-weights", "ffn_up"],
    ["--exclude-weights", "ffn_down"], ["--exclude-weights", "blk"],
], ids=lambda flags: " ".join(flags) or "all")
def test_llama_imatrixs_files_and_selections(
    wide, type_name, ending, flags, llama_imatrix, run_nibble, llama_quantize, tmp_path
):
    imatrix = llama_imatrix(wide, ending)
    llama_quantize("--imatrix", imatrix, *flags, wide, tmp_path / "theirs.gguf", type_name)
    ours = run_nibble(
        "quantize", "--method", "ggml", "--imatrix", imatrix, *flags, wide, tmp_path / "ours.gguf", type_name
    )
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_an_imatrix_changes_the_bytes_and_the_plan(wide, our_imatrix, run_nibble, tmp_path):
    for name, flags in [("with", ["--imatrix", our_imatrix(wide)]), ("without", [])]:
        assert run_nibble("quantize", *flags, wide, tmp_path / name, "Q4_0").returncode == 0
    _, with_it = gguf_table.read(tmp_path / "with")
    _, without = gguf_table.read(tmp_path / "without")
    assert with_it["blk.0.ffn_down.weight"].type == "Q4_1" and without["blk.0.ffn_down.weight"].type == "Q4_0"
    differing = {name for name in with_it if with_it[name] != without[name]}
    assert differing == {name for name in with_it if name.startswith("blk.") and "norm" not in name}


def weighted_error(source, quantized, name, importance):
    kind = gguf.GGMLQuantizationType[quantized[name].type]
    rows = floats(source[name]).reshape(-1, importance.size).astype(np.float64)
    decoded = gguf.quants.dequantize(np.frombuffer(quantized[name].data, np.uint8), kind).reshape(rows.shape)
    return (np.square(decoded - rows) * importance).sum()


def test_search_weighs_errors_and_is_no_worse_than_ggml(wide, our_imatrix, run_nibble, tmp_path):
    _, source = gguf_table.read(wide)
    _, sums = gguf_table.read(our_imatrix(wide))
    runs = {"ggml": ["--method", "ggml"], "search": []}
    files = {}
    for name, flags in runs.items():
        result = run_nibble("quantize", *flags, "--imatrix", our_imatrix(wide), wide, tmp_path / name, "Q4_0")
        assert result.returncode == 0, result.stderr
        files[name] = gguf_table.read(tmp_path / name)[1]
    assert run_nibble("quantize", wide, tmp_path / "plain", "Q4_0").returncode == 0
    files["plain"] = gguf_table.read(tmp_path / "plain")[1]
    totals = dict.fromkeys(files, 0.0)
    for name in source:
        if not name.startswith("blk.") or "norm" in name or name == "blk.0.ffn_down.weight":
            continue
        importance = floats(sums[name + ".in_sum2"]).astype(np.float64)
        errors = {method: weighted_error(source, tensors, name, importance) for method, tensors in files.items()}
        # 1e-6: the search adds up its squares in float32.
        assert errors["search"] <= errors["ggml"] * (1 + 1e-6), name
        for method, error in errors.items():
            totals[method] += error
    assert totals["search"] < totals["ggml"] and totals["search"] < totals["plain"]


EXPERTS = 4


@pytest.fixture(scope="module")
def experts(folder):
    """(model, imatrix): a stack of experts; one was never reached, one entry has one count for all, one is missing."""
    path, width, wide, vocab = folder / "experts.gguf", 256, 512, 100
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(width)
    writer.add_context_length(256)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    random = np.random.default_rng(7)
    entries = {}
    writer.add_tensor("token_embd.weight", random.standard_normal((vocab, width), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(2):
        for name, shape in [
            ("attn_q", (width, width)), ("attn_k", (width, width)), ("attn_v", (width, width)),
            ("attn_output", (width, width)), ("ffn_gate_inp", (EXPERTS, width)),
            ("ffn_gate_exps", (EXPERTS, wide, width)), ("ffn_up_exps", (EXPERTS, wide, width)),
            ("ffn_down_exps", (EXPERTS, width, wide)),
        ]:
            full = f"blk.{layer}.{name}.weight"
            writer.add_tensor(full, random.standard_normal(shape, dtype=np.float32))
            matrices = EXPERTS if len(shape) == 3 else 1
            counts = np.full((matrices, 1), 96, np.float32)
            values = np.square(random.standard_normal((matrices, shape[-1]), dtype=np.float32)) * 96
            if matrices > 1:
                counts[2] = 0
                values[2] = 0
            entries[full] = (values, counts)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values, _ = entries["blk.0.ffn_up_exps.weight"]
    entries["blk.0.ffn_up_exps.weight"] = (values.reshape(1, -1), np.full((1, 1), 96, np.float32))
    del entries["blk.1.ffn_up_exps.weight"]
    write_imatrix(folder / "experts-imatrix.gguf", entries)
    return path, folder / "experts-imatrix.gguf"


def write_imatrix(path, entries, datasets=("some.txt",)):
    """entries: name -> (sums [experts, columns], counts [experts, 1])."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # an imatrix has no architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 32)
    for name, (values, counts) in entries.items():
        writer.add_tensor(name + ".in_sum2", values)
        writer.add_tensor(name + ".counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_0", "Q4_1", "Q8_0"])
def test_experts_equal_llama_quantize(experts, type_name, run_nibble, llama_quantize, tmp_path):
    model, imatrix = experts
    llama_quantize("--imatrix", imatrix, model, tmp_path / "theirs.gguf", type_name)
    ours = run_nibble("quantize", "--method", "ggml", "--imatrix", imatrix, model, tmp_path / "ours.gguf", type_name)
    assert ours.returncode == 0, ours.stderr
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    # Experts without activations are named and keep their tensor's importance; a missing entry is named too.
    named = [line for line in ours.stderr.splitlines() if "no activation reached expert 2" in line]
    assert len(named) == 4
    assert f"{imatrix}: no entry, so no importance, for blk.1.ffn_up_exps.weight" in ours.stderr


def test_json_tells_what_was_written(stories260k, text, run_nibble, tmp_path):
    out = tmp_path / "imatrix.gguf"
    result = run_nibble("imatrix", stories260k, text, "-o", out, "--ctx", 64, "--chunks", 3, "--json")
    report = json.loads(result.stdout)
    assert (report["name"], report["entries"], report["chunks"], report["ctx"], report["tokens"]) == (
        str(out), 35, 3, 64, 192)
    assert report["tokens_per_second"] == pytest.approx(192 / report["seconds"])
    assert gguf_table.read(out)[0]["imatrix.datasets"] == (9, [str(text).encode()])


def test_what_cannot_be(stories260k, wide, text, our_imatrix, run_nibble, tmp_path):
    def refused(status, part, *arguments):
        result = run_nibble(*arguments)
        assert result.returncode == status and part in result.stderr, result.stderr
        assert len(result.stderr.strip().splitlines()) == 1

    quantize = ["quantize", "-q", stories260k, tmp_path / "out.gguf", "Q4_0"]
    imatrix = our_imatrix(stories260k)
    refused(2, "--include-weights needs --imatrix", *quantize, "--include-weights", "attn")
    refused(2, "do not go together", *quantize, "--imatrix", imatrix, "--include-weights", "a",
            "--exclude-weights", "b")
    refused(2, "no entry's name has 'attn_kv'", *quantize, "--imatrix", imatrix, "--include-weights", "attn_kv")
    refused(2, "--method rtn", *quantize, "--imatrix", imatrix, "--method", "rtn")
    refused(1, f"{wide}: the metadata has no key 'imatrix.datasets'", *quantize, "--imatrix", wide)
    refused(1, f"{text}: no GGUF file, read as a .dat", *quantize, "--imatrix", text)
    refused(1, "columns, wanted 64", *quantize, "--imatrix", our_imatrix(wide))
    refused(1, "no-such", *quantize, "--imatrix", tmp_path / "no-such.gguf")
    refused(2, "no -o FILE.gguf given", "imatrix", stories260k, text)
    refused(2, "written over itself", "imatrix", stories260k, text, "-o", text)
    refused(1, "needs at least", "imatrix", stories260k, text, "-o", tmp_path / "i.gguf", "--ctx", 10**8)
    assert not list(tmp_path.iterdir())
