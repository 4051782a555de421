"""Embeddings as files of numpy (`.npy`), without numpy: one dimension of 32-bit floats."""

import sys
from array import array

_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGNMENT = 64


def npy_file(numbers: bytes) -> bytes:
    """A file with these numbers, which are little-endian 32-bit floats."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({len(numbers) // 4},), }}"
    length = len(_MAGIC) + 2 + len(header) + 1
    text = header.encode() + b" " * (-length % _ALIGNMENT) + b"\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text + numbers


def numbers_of(file: bytes) -> list[float]:
    """The numbers in a file that `npy_file` or numpy wrote.

    Raises:
        ValueError: the file holds something else.
    """
    start = len(_MAGIC) + 2
    end = start + int.from_bytes(file[len(_MAGIC) : start], "little")
    header = file[start:end].replace(b" ", b"")
    if not file.startswith(_MAGIC) or b"'descr':'<f4'" not in header:
        raise ValueError("no embedding of 32-bit floats")
    values = floats(file[end:])
    if f"'shape':({len(values)},)".encode() not in header:
        raise ValueError("an embedding that is incomplete")
    return values


def floats(numbers: bytes) -> list[float]:
    """Little-endian 32-bit floats as numbers. ValueError when their bytes are incomplete."""
    values = array("f")
    values.frombytes(numbers)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
