"""Block formats against ggml's own codecs (libggml-base by ctypes) and gguf-py: decode bit for bit, encode byte for byte.

nibble's are called in the shared library of tests/interop/format_c.cc.
"""

import ctypes

import numpy as np
import pytest
from conftest import built_library

GGML, RTN, SEARCH = 0, 1, 2
ROW_LENGTH = 256


def _load():
    library = built_library("nibble_format_c")
    if library is None:
        return None
    library.nibble_num_formats.restype = ctypes.c_int64
    library.nibble_format_name.restype = ctypes.c_char_p
    library.nibble_encode.restype = ctypes.c_char_p
    return library


LIBRARY = _load()


class Format:
    """One row of nibble's registry."""

    def __init__(self, index):
        info = (ctypes.c_int64 * 6)()
        LIBRARY.nibble_format_info(ctypes.c_int64(index), info)
        self.type, self.block_size, self.block_bytes, self.num_scales, self.ftype, self.encodes = info
        self.name = LIBRARY.nibble_format_name(ctypes.c_int64(index)).decode()

    def decode(self, blocks):
        """blocks: uint8 [num blocks * block bytes] -> float32."""
        num_blocks = blocks.size // self.block_bytes
        out = np.empty(num_blocks * self.block_size, np.float32)
        LIBRARY.nibble_decode(ctypes.c_uint32(self.type), _pointer(blocks), _pointer(out), ctypes.c_int64(num_blocks))
        return out

    def encode(self, rows, importance, method):
        """rows: float32 [n, row length]; importance: float32 [row length] or None -> uint8; ValueError when refused."""
        out = np.zeros(rows.size // self.block_size * self.block_bytes, np.uint8)
        message = LIBRARY.nibble_encode(
            ctypes.c_uint32(self.type), _pointer(rows), _pointer(importance), _pointer(out),
            ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]), ctypes.c_int(method))
        if message:
            raise ValueError(message.decode())
        return out


def _pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


DECODERS = [Format(i) for i in range(LIBRARY.nibble_num_formats())] if LIBRARY else []
FORMATS = [fmt for fmt in DECODERS if fmt.encodes]
DECODE_ONLY = [fmt for fmt in DECODERS if not fmt.encodes]
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libnibble_format_c.so is not built")
each_decoder = pytest.mark.parametrize("fmt", DECODERS, ids=lambda f: f.name)
each_decode_only = pytest.mark.parametrize("fmt", DECODE_ONLY, ids=lambda f: f.name)
each_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)


@pytest.fixture(scope="module")
def ggml(ggml_base):
    ggml_base.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml_base.ggml_get_type_traits.restype = ctypes.c_void_p
    ggml_base.ggml_type_name.restype = ctypes.c_char_p
    ggml_base.ggml_validate_row_data.restype = ctypes.c_bool
    return ggml_base


def ggml_encode(ggml, fmt, rows, importance):
    out = np.zeros(rows.size // fmt.block_size * fmt.block_bytes, np.uint8)
    written = ggml.ggml_quantize_chunk(
        ctypes.c_int(fmt.type), _pointer(rows), _pointer(out), ctypes.c_int64(0),
        ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]), _pointer(importance))
    assert written == out.size
    return out


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = [("type_name", ctypes.c_char_p), ("blck_size", ctypes.c_int64),
                ("blck_size_interleave", ctypes.c_int64), ("type_size", ctypes.c_size_t),
                ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p), ("from_float_ref", ctypes.c_void_p)]


def ggml_decode(ggml, fmt, blocks):
    out = np.empty(blocks.size // fmt.block_bytes * fmt.block_size, np.float32)
    traits = TypeTraits.from_address(ggml.ggml_get_type_traits(ctypes.c_int(fmt.type)))
    if fmt.name == "F32":  # ggml has no to_float for what already is one
        return blocks.view(np.float32).copy()
    to_float = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(traits.to_float)
    to_float(_pointer(blocks), _pointer(out), ctypes.c_int64(out.size))
    return out


def below_powers_of_two(rng, normal):
    """The largest of every 16 weights is up to 60 units of its last place below a power of two, where a float32 logarithm may already be the power's."""
    powers = np.exp2(rng.integers(-40, 15, (normal.shape[0], 1)))
    rows = (normal * 0.01 * powers).astype(np.float32)
    rows[:, ::16] = powers * (1 - rng.integers(0, 60, rows[:, ::16].shape) * 2.0**-24)
    return rows


def row_kinds():
    """name -> float32 [rows, ROW_LENGTH]."""
    rng = np.random.default_rng(20)
    shape = (400, ROW_LENGTH)
    normal = rng.standard_normal(shape).astype(np.float32)
    outlier = normal * np.float32(1e-3)
    outlier[:, ::37] = 40
    signed_zeros = np.where(rng.random(shape) < 0.5, np.float32(0), np.float32(-0.0)).astype(np.float32)
    kinds = {
        "normal": normal * np.float32(0.02),
        "heavy-tailed": rng.standard_t(2, shape).astype(np.float32) * np.float32(0.01),
        "tied": rng.integers(-8, 9, shape).astype(np.float32) / np.float32(8),
        "half steps": (rng.integers(-17, 18, shape) / np.float32(2)).astype(np.float32),
        "zero": np.zeros(shape, np.float32),
        "signed zeros": signed_zeros,
        "constant": np.repeat(normal[:, :1], ROW_LENGTH, axis=1),
        "positive": np.abs(normal) + np.float32(3),
        "negative": -np.abs(normal) - np.float32(3),
        "one outlier": outlier,
        "sparse": np.where(rng.random(shape) < 0.05, normal, np.float32(0)).astype(np.float32),
        "denormal": normal * np.float32(1e-40),
        "below float16": normal * np.float32(2e-8),
        "float16 denormal": normal * np.float32(3e-6),
        "large": normal * np.float32(3000),
        "wide": (normal * np.exp2(rng.integers(-30, 10, shape))).astype(np.float32),
        "below powers of two": below_powers_of_two(rng, normal),
    }
    return {name: np.ascontiguousarray(rows, dtype=np.float32) for name, rows in kinds.items()}


KINDS = row_kinds()
each_kind = pytest.mark.parametrize("kind", KINDS)


def importances():
    """name -> float32 [ROW_LENGTH] or None."""
    rng = np.random.default_rng(21)
    uniform = rng.random(ROW_LENGTH).astype(np.float32)
    sparse = np.where(rng.random(ROW_LENGTH) < 0.3, np.float32(0), uniform * 100).astype(np.float32)
    columns = np.arange(ROW_LENGTH)
    few = np.where(columns % 37 == 0, uniform, np.float32(0))
    apart = np.where(columns % 61 == 0, np.float32(1), np.float32(1e-10))
    return {"none": None, "uniform": uniform, "log-normal": np.exp(rng.standard_normal(ROW_LENGTH) * 3).astype(np.float32),
            "with zeros": sparse, "all zero": np.zeros(ROW_LENGTH, np.float32), "few columns": few, "far apart": apart}


IMPORTANCES = importances()


def is_valid(ggml, fmt, blocks):
    """What llama-quantize checks before it writes."""
    blocks = np.ascontiguousarray(blocks)
    return ggml.ggml_validate_row_data(ctypes.c_int(fmt.type), _pointer(blocks), ctypes.c_size_t(blocks.size))


def random_blocks(fmt, count, seed):
    return np.random.default_rng(seed).integers(0, 256, count * fmt.block_bytes, dtype=np.uint8)


def same_floats(a, b):
    """Bitwise equality, except that any NaN equals any NaN."""
    return np.array_equal(np.where(np.isnan(a), 0, a).view(np.uint32), np.where(np.isnan(b), 0, b).view(np.uint32)) \
        and np.array_equal(np.isnan(a), np.isnan(b))


@each_decoder
def test_the_registry_agrees_with_ggml(fmt, ggml):
    traits = TypeTraits.from_address(ggml.ggml_get_type_traits(ctypes.c_int(fmt.type)))
    assert traits.type_name.decode().upper() == fmt.name
    assert (traits.blck_size, traits.type_size) == (fmt.block_size, fmt.block_bytes)


# Random blocks hold each code of a codebook hundreds of times (2048 codes at most, 32 or 64 in a block), under scales that are
# also infinite and NaN.
@each_decoder
def test_decode_is_bit_equal_to_ggml(fmt, ggml):
    blocks = random_blocks(fmt, 20000, seed=fmt.type)
    assert same_floats(fmt.decode(blocks), ggml_decode(ggml, fmt, blocks))


@each_decode_only
def test_real_blocks_decode_bit_equal_to_ggml_and_gguf_py(fmt, ggml):
    """ggml itself encodes; some of these types it refuses to encode without an importance row."""
    gguf = pytest.importorskip("gguf")
    rows, weights = KINDS["normal"][:16], IMPORTANCES["uniform"]
    blocks = ggml_encode(ggml, fmt, rows, weights)
    ours = fmt.decode(blocks)
    assert same_floats(ours, ggml_decode(ggml, fmt, blocks))
    theirs = gguf.dequantize(blocks.reshape(-1, fmt.block_bytes), gguf.GGMLQuantizationType(fmt.type))
    assert same_floats(ours, np.ascontiguousarray(theirs, np.float32).ravel())
    correlation = np.corrcoef(ours, rows.ravel())[0, 1]
    assert correlation > 0.7  # they are these rows, in 1.5 bits and more


@each_decode_only
def test_encoding_what_is_only_decoded_is_refused(fmt):
    with pytest.raises(ValueError, match=f"decodes {fmt.name} but does not encode it"):
        fmt.encode(KINDS["normal"][:5], None, SEARCH)


@each_decoder
def test_decode_is_bit_equal_to_gguf_py(fmt):
    gguf = pytest.importorskip("gguf")
    try:
        kind = gguf.GGMLQuantizationType(fmt.type)
        blocks = random_blocks(fmt, 20000, seed=100 + fmt.type)
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(blocks.reshape(-1, fmt.block_bytes * 4), kind)
    except (ValueError, NotImplementedError):
        pytest.skip(f"gguf-py cannot decode {fmt.name}")
    assert same_floats(fmt.decode(blocks), np.ascontiguousarray(expected, np.float32).ravel())


@pytest.mark.parametrize("importance", IMPORTANCES)
@each_kind
@each_format
def test_encode_ggml_is_byte_equal(fmt, kind, importance, ggml):
    rows, weights = KINDS[kind], IMPORTANCES[importance]
    theirs = ggml_encode(ggml, fmt, rows, weights)
    if not is_valid(ggml, fmt, theirs):
        with pytest.raises(ValueError, match="overflows float16"):
            fmt.encode(rows, weights, GGML)
        rows = rows[[is_valid(ggml, fmt, blocks) for blocks in theirs.reshape(len(rows), -1)]]
        theirs = ggml_encode(ggml, fmt, rows, weights)
    ours = fmt.encode(rows, weights, GGML)
    # Below float16's range ggml divides by a scale so small that 1/d overflows and casts the result to an integer, which C
    # leaves undefined; the stored scale is 0 there, so the values are equal whatever the codes.
    if kind in ("denormal",):
        assert np.array_equal(fmt.decode(ours), fmt.decode(theirs))
    else:
        differing = np.flatnonzero(ours != theirs)
        assert differing.size == 0, f"{differing.size} bytes differ, first in block {differing[0] // fmt.block_bytes}"


@pytest.mark.parametrize("importance", IMPORTANCES)
@each_kind
@each_format
def test_search_is_at_least_as_good_as_ggml(fmt, kind, importance, ggml):
    rows, weights = KINDS[kind], IMPORTANCES[importance]

    def row_errors(blocks):
        difference = fmt.decode(blocks).reshape(rows.shape).astype(np.float64) - rows
        return (difference**2 * (1 if weights is None else weights)).sum(axis=1)

    ours = row_errors(fmt.encode(rows, weights, SEARCH))
    theirs = row_errors(ggml_encode(ggml, fmt, rows, weights))
    theirs[~np.isfinite(theirs)] = np.inf  # a scale that overflowed
    # Rounding of the sums of ROW_LENGTH doubles above, nothing else.
    assert np.all(ours <= theirs * (1 + ROW_LENGTH * 2.0**-52))


def store_scales(fmt, blocks, rng):
    """Puts scales such as weights have, of either sign where there are two, into blocks [n, block bytes] of a format without sub-scales."""
    if fmt.name == "MXFP4":
        blocks[:, 0] = rng.integers(100, 150, len(blocks))
    elif fmt.name == "NVFP4":
        blocks[:, :4] = rng.integers(1, 0x7F, (len(blocks), 4))
    elif fmt.num_scales > 0:
        scales = np.exp(rng.standard_normal((len(blocks), 1)) - 4) * np.sign(rng.standard_normal((len(blocks), 1)))
        offsets = scales * rng.uniform(-40, 40, (len(blocks), fmt.num_scales - 1))
        stored = np.concatenate([scales, offsets], axis=1).astype(np.float16).view(np.uint8).reshape(len(blocks), -1)
        where = slice(-2, None) if fmt.name in ("TQ1_0", "TQ2_0") else slice(0, stored.shape[1])
        blocks[:, where] = stored


def on_grid_rows(fmt):
    """For formats without sub-scales: rows of 8 blocks that decode from random codes."""
    blocks = random_blocks(fmt, 4096, seed=201 + fmt.type).reshape(-1, fmt.block_bytes)
    store_scales(fmt, blocks, np.random.default_rng(200 + fmt.type))
    if fmt.name == "Q8_0":
        blocks[blocks == 0x80] = 0x81  # -128, which encoders do not use (a scale byte may change too)
    values = fmt.decode(blocks.ravel()).reshape(-1, fmt.block_size)
    finite = values[np.isfinite(values).all(axis=1)]
    return np.ascontiguousarray(finite[: len(finite) // 8 * 8].reshape(-1, 8 * fmt.block_size))


@each_format
def test_what_lies_on_the_grid_stays(fmt):
    if fmt.num_scales > 2 and fmt.name != "NVFP4":
        pytest.skip("tests/quant/format/exact_sub_scales_test.cc plants grids of formats with sub-scales")
    rows = on_grid_rows(fmt)
    assert rows.size > 1000
    assert np.array_equal(fmt.decode(fmt.encode(rows, None, SEARCH)), rows.ravel())


@each_format
def test_ggml_accepts_what_is_encoded(fmt, ggml):
    for method in (GGML, RTN, SEARCH):
        blocks = fmt.encode(KINDS["heavy-tailed"], None, method)
        assert is_valid(ggml, fmt, blocks)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_format
def test_rows_with_nan_or_infinity_are_refused(fmt, bad):
    rows = KINDS["normal"][:5].copy()
    rows[3, 77] = bad
    with pytest.raises(ValueError, match="row 3, column 77"):
        fmt.encode(rows, None, SEARCH)


@each_format
def test_a_block_that_counts_for_nothing_overflows_where_ggmls_does(fmt, ggml):
    """Where ggml looks at weights that count alone, its scale of such a block is 0, however large the weights."""
    rows = KINDS["normal"][:5].copy()
    rows[2, 40] = 3e6
    weights = np.where(np.arange(ROW_LENGTH) < 256, np.float32(0), np.float32(1))
    if is_valid(ggml, fmt, ggml_encode(ggml, fmt, rows, weights)):
        fmt.encode(rows, weights, SEARCH)


@pytest.mark.parametrize("method", [GGML, RTN, SEARCH])
@each_format
def test_rows_whose_scale_overflows_are_refused_where_ggml_does(fmt, method, ggml):
    rows = KINDS["normal"][:5].copy()
    rows[2, 40] = 3e7
    theirs = ggml_encode(ggml, fmt, rows, None)
    if is_valid(ggml, fmt, theirs):
        fmt.encode(rows, None, method)
    else:
        with pytest.raises(ValueError, match="row 2"):
            fmt.encode(rows, None, method)
