"""Files of the gguf package and files of nibble, read by each other."""

import subprocess

import gguf
import gguf_table
import numpy as np
import pytest


def value_of(field):
    """A field of gguf.GGUFReader as (types, plain value)."""
    if field.types[0] == gguf.GGUFValueType.ARRAY:
        return field.types, [field.parts[i].tolist() for i in field.data]
    return field.types, field.parts[field.data[0]].tolist()


def assert_rewritten(source, copy):
    """The gguf package finds the same metadata and tensors in both, but for what quantizing to F32 sets."""
    source, copy = gguf.GGUFReader(source), gguf.GGUFReader(copy)
    ours = ("GGUF.", "general.file_type", "general.quantization_version", "nibble.")
    wanted = {key: value_of(field) for key, field in source.fields.items() if not key.startswith(ours)}
    found = {key: value_of(field) for key, field in copy.fields.items() if not key.startswith(ours)}
    assert repr(found) == repr(wanted)
    assert [tensor.name for tensor in copy.tensors] == [tensor.name for tensor in source.tensors]
    for wanted, found in zip(source.tensors, copy.tensors):
        assert found.tensor_type == wanted.tensor_type and found.shape.tolist() == wanted.shape.tolist()
        assert np.array_equal(found.data, wanted.data)


def add_every_metadata_type(writer):
    writer.add_uint8("t.u8", 255)
    writer.add_int8("t.i8", -128)
    writer.add_uint16("t.u16", 65535)
    writer.add_int16("t.i16", -32768)
    writer.add_uint32("t.u32", 4294967295)
    writer.add_int32("t.i32", -2147483648)
    writer.add_float32("t.f32", 0.1)
    writer.add_bool("t.bool", True)
    writer.add_string("t.string", "\u00e9\u4e16\u754c \U0001f600")
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_int64("t.i64", -(2**63))
    writer.add_float64("t.f64", 0.1)
    writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, -1e30])
    writer.add_array("t.bools", [True, False, True])
    writer.add_array("t.strings", ["", "a", "\u00df"])


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_what_the_gguf_package_writes_comes_back(alignment, run_nibble, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.add_custom_alignment(alignment)
    add_every_metadata_type(writer)
    generator = np.random.default_rng(0)
    writer.add_tensor("output_norm.weight", generator.standard_normal(33, dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight", generator.standard_normal((5, 96), dtype=np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", generator.standard_normal((2, 3, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = run_nibble("quantize", tmp_path / "in.gguf", tmp_path / "out.gguf", "F32")
    assert result.returncode == 0, result.stderr
    assert_rewritten(tmp_path / "in.gguf", tmp_path / "out.gguf")


def test_a_real_file_comes_back(stories260k, run_nibble, tmp_path):
    assert run_nibble("quantize", stories260k, tmp_path / "out.gguf", "F32").returncode == 0
    assert_rewritten(stories260k, tmp_path / "out.gguf")


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_the_gguf_package_reads_every_type(stories260k, type_name, run_nibble, tmp_path):
    out = tmp_path / "out.gguf"
    assert run_nibble("quantize", stories260k, out, type_name).returncode == 0
    _, table = gguf_table.read(out)
    tensors = gguf.GGUFReader(out).tensors
    assert len(tensors) == 48
    for tensor in tensors:
        assert tensor.tensor_type.name == table[tensor.name].type
        assert np.asarray(tensor.data).tobytes() == table[tensor.name].data


def test_split_files_become_one(stories260k, run_nibble, llama_bin, llama_env, tmp_path):
    subprocess.run(
        [llama_bin("llama-gguf-split"), "--split-max-tensors", "20", stories260k, tmp_path / "part"],
        env=llama_env, check=True, capture_output=True,
    )
    first = tmp_path / "part-00001-of-00003.gguf"
    whole, joined = tmp_path / "whole.gguf", tmp_path / "joined.gguf"
    assert run_nibble("quantize", stories260k, whole, "Q4_0").returncode == 0
    result = run_nibble("quantize", first, joined, "Q4_0")
    assert result.returncode == 0, result.stderr
    wanted, found = gguf_table.read(whole), gguf_table.read(joined)
    assert found[1] == wanted[1]
    assert {key: repr(value) for key, value in found[0].items()} == {key: repr(value) for key, value in wanted[0].items()}
    second = run_nibble("quantize", tmp_path / "part-00002-of-00003.gguf", joined, "Q4_0")
    assert second.returncode == 1 and "give the first part" in second.stderr
