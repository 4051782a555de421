"""Embeddings in messages of Milvus, written as they are in memory."""

import numpy as np
from numpy.typing import NDArray

_PACKED = b"\x0a"  # the key of the only field of a FloatArray, with its length before its values


def packed(numbers: NDArray[np.float32]) -> bytes:
    """Numbers as a serialized `FloatArray`, row after row."""
    raw = np.asarray(numbers, "<f4").tobytes()
    return _PACKED + _varint(len(raw)) + raw


def _varint(number: int) -> bytes:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
