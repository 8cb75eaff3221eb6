"""The fields and the tensors of a GGUF file, in NumPy: as much of the format as SmolLM2's file needs.

Little-endian: "GGUF", version, number of tensors, number of fields; the fields; name, shape, kind and
offset of every tensor; from the next multiple of the alignment on, their data. A quantised tensor is
rows of blocks of 32 values:
    Q4_1   d, m (float16), 16 bytes: low halves are the first 16 numbers, high ones the rest;  d q + m
    Q8_0   d (float16), 32 signed bytes;                                                       d q
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
BLOCKS = {
    F32: np.dtype("<f4"),
    Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]),
    Q8_0: np.dtype([("d", "<f2"), ("q", "i1", 32)]),
}


def read(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, np.ndarray]]]:
    """All fields, and one by one (name, values in float32) of every tensor.

    Raises ValueError for another file, half of one, or a tensor of another kind.
    """
    content = memoryview(np.memmap(path, np.uint8, "r")) if path.stat().st_size else memoryview(b"")
    at = 0

    def number(kind: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from(f"<{kind}", content, at)
        at += struct.calcsize(kind)
        return found

    def value(kind: int) -> Any:
        nonlocal at
        if kind == ARRAY:
            inner, count = number("I"), number("Q")
            return [value(inner) for _ in range(count)]
        if kind != STRING:
            return number(NUMBERS[kind])
        size = number("Q")
        at += size
        return bytes(content[at - size : at]).decode()

    try:
        if bytes(content[:4]) != b"GGUF":
            raise ValueError(f"it begins with {bytes(content[:4])!r}")
        at = 8
        tensors, fields = number("Q"), number("Q")
        found = {value(STRING): value(number("I")) for _ in range(fields)}
        places = []
        for _ in range(tensors):
            name, sizes = value(STRING), [number("Q") for _ in range(number("I"))]
            places.append((name, sizes[::-1], number("I"), number("Q")))
        alignment = found.get("general.alignment", 32)
        begin = -(-at // alignment) * alignment
        data = []
        for name, shape, kind, offset in places:
            if kind not in BLOCKS:
                raise ValueError(f"{name} is of kind {kind}, known are {sorted(BLOCKS)}")
            size = 1 if kind == F32 else 32
            count = int(np.prod(shape)) // size
            data.append((name, shape, np.frombuffer(content, BLOCKS[kind], count, begin + offset)))
    except (struct.error, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is no GGUF file that can be read, or half of one ({error}); fetch it again"
        ) from error
    return found, ((name, values(blocks).reshape(shape)) for name, shape, blocks in data)


def values(blocks: np.ndarray) -> np.ndarray:
    """In float32: the numbers themselves, or those of blocks."""
    if blocks.dtype.names is None:
        return blocks
    q, d = blocks["q"], blocks["d"].astype(np.float32)[:, None]
    if "m" not in blocks.dtype.names:
        return d * q
    halves = np.concatenate([q & 15, q >> 4], 1)
    return d * halves + blocks["m"].astype(np.float32)[:, None]
