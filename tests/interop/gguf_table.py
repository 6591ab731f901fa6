"""The tensor table and data of a GGUF file, read from the description of the format alone: the gguf package does
not know every type that llama.cpp writes (Q2_0 in 0.18 and before)."""

import mmap
import pathlib
import struct
from typing import NamedTuple

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BLOCKS = {  # number: (name, weights, bytes) of a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}


class Tensor(NamedTuple):
    type: str
    shape: tuple
    data: bytes


class _Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            element, count = self.take("I"), self.take("Q")
            return [self.value(element) for _ in range(count)]
        return self.take(SCALARS[kind])


def read(path):
    """(metadata: {key: (type, value)} with strings as bytes, tensors: {name: Tensor}), both in file order."""
    with pathlib.Path(path).open("rb") as file:
        cursor = _Cursor(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert cursor.data[:4] == b"GGUF"
    cursor.at = 8
    num_tensors, num_keys = cursor.take("Q"), cursor.take("Q")
    metadata = {}
    for _ in range(num_keys):
        key, kind = cursor.string().decode(), cursor.take("I")
        metadata[key] = (kind, cursor.value(kind))
    rows = []
    for _ in range(num_tensors):
        name = cursor.string().decode()
        shape = tuple(cursor.take("Q") for _ in range(cursor.take("I")))
        rows.append((name, shape, cursor.take("I"), cursor.take("Q")))
    alignment = metadata.get("general.alignment", (4, 32))[1]
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, number, offset in rows:
        type_name, weights, size = BLOCKS[number]
        count = 1
        for length in shape:
            count *= length
        begin = start + offset
        tensors[name] = Tensor(type_name, shape, cursor.data[begin : begin + count // weights * size])
    return metadata, tensors
