"""TIFF files of kinds that Pillow does not write."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SHORT, LONG = 3, 4
DEFLATE = 8


def packed(samples: NDArray[np.generic], bits: int, order: str = "<") -> list[bytes]:
    """The rows of an array [height, samples of a row]: numbers of any number of bits."""
    if bits in (8, 16, 32, 64):
        swapped = samples.astype(f"{order}{samples.dtype.kind}{bits // 8}")
        return [row.tobytes() for row in swapped]
    digits = ["".join(f"{int(value):0{bits}b}" for value in row) for row in samples]
    return [
        int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8), "big")
        for line in digits
    ]


def tiff(
    rows: Sequence[Sequence[bytes]],
    size: tuple[int, int],
    bits: int,
    *,
    order: str = "<",
    photometric: int = 1,
    samples: int = 1,
    number: int = 1,
    deflate: bool = False,
    tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF.

    Args:
        rows: the rows of each plane, or of the only one.
        size: width and height in pixels.
        bits: of a sample.
        order: the byte order, `<` or `>`.
        photometric: 0: white is 0, 1: black is 0, 2: RGB, 5: CMYK.
        samples: of a pixel.
        number: 1: unsigned, 2: signed, 3: floating-point.
        deflate: compress each strip, of four rows.
        tags: other tags and their numbers, of 16 bits.
    """
    width, height = size
    strips = [b"".join(plane[at : at + 4]) for plane in rows for at in range(0, height, 4)]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    ends = np.cumsum([8, *map(len, strips)]).tolist()
    others = {name: (SHORT, [*numbers]) for name, numbers in (tags or {}).items()}
    entries: dict[int, tuple[int, list[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * samples),
        259: (SHORT, [DEFLATE if deflate else 1]),
        262: (SHORT, [photometric]),
        273: (LONG, ends[:-1]),
        277: (SHORT, [samples]),
        278: (LONG, [4]),
        279: (LONG, [len(strip) for strip in strips]),
        284: (SHORT, [2 if len(rows) > 1 else 1]),
        339: (SHORT, [number] * samples),
        **others,
    }
    start = ends[-1] + ends[-1] % 2
    directory, after = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, numbers) in sorted(entries.items()):
        value = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        if len(value) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(after)
            after += value + bytes(len(value) % 2)
            value = struct.pack(order + "I", place)
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + "HI", 42, start)
    return head + b"".join(strips) + bytes(ends[-1] % 2) + directory + bytes(4) + after
