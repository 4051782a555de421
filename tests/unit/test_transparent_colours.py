"""A colour that a file names as transparent, at each depth; and alpha that is only padding."""

import struct

import numpy as np
import pytest
from PIL import Image

from support.images import decoded, encoded, png, png_chunk
from support.tiffs import packed


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("high", [False, True])
def test_the_transparent_grey_of_a_png_lies_on_white(bits: int, high: bool) -> None:
    """Values of one byte more are no longer that grey, also where 8 bits show no difference."""
    top = 2**bits - 1
    row = [0, top, top // 2, min(top, 1)]
    clear = row[2] if high else 0
    values = np.array([row] * 3, np.uint16 if bits == 16 else np.uint8)
    rows = b"".join(packed(values, bits, ">"))
    chunk = png_chunk(b"tRNS", struct.pack(">H", clear))
    seen = decoded(png(4, 3, bits, 0, rows, chunk)).image
    right = [255 if value == clear else value * 255 // top for value in row]
    assert seen[1].tolist() == [[grey] * 3 for grey in right]


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png_lies_on_white(bits: int) -> None:
    row = [[0, 0, 0], [0, 0, 1], [200, 10, 5], [200, 10, 6]]
    values = np.array([row] * 3, np.uint16 if bits == 16 else np.uint8)
    rows = b"".join(packed(values.reshape(3, -1), bits, ">"))
    for n, clear in enumerate(row):
        chunk = png_chunk(b"tRNS", struct.pack(">HHH", *clear))
        seen = decoded(png(4, 3, bits, 2, rows, chunk)).image[1]
        right = (values[1] >> 8 if bits == 16 else values[1]).copy()
        right[n] = 255
        assert seen.tolist() == right.tolist()


def test_a_transparent_colour_has_as_many_bits_as_the_image() -> None:
    """What a file has above them does not count."""
    chunk = png_chunk(b"tRNS", struct.pack(">H", 0xFF01))
    seen = decoded(png(8, 1, 1, 0, b"\x0f", chunk)).image
    assert seen[0, :, 0].tolist() == [0] * 4 + [255] * 4
    chunk = png_chunk(b"tRNS", struct.pack(">H", 0xFF00))
    assert decoded(png(8, 1, 1, 0, b"\x0f", chunk)).image.min() == 255


def test_a_large_png_with_a_transparent_colour_keeps_its_size() -> None:
    image = Image.new("L", (601, 450), 7)
    image.paste(100, (0, 0, 300, 450))
    seen = decoded(encoded(image, "PNG", transparency=7), edge=20).image
    assert seen.shape == (450, 601, 3)
    assert [seen[9, 9].tolist(), seen[9, 590].tolist()] == [[100] * 3, [255] * 3]


BGRA, RGBA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF, 0xFF00, 0xFF0000, 0xFF000000)


def bmp(pixels: bytes, masks: tuple[int, int, int, int], header: int = 124) -> bytes:
    """A BMP of 2 x 1 pixels with 32 bits."""
    body = struct.pack("<IiiHHIIiiII", header, 2, 1, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    body = (body + struct.pack("<4I", *masks)).ljust(header, b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + header + 8, 0, 0, 14 + header) + body + pixels


@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize("file", [True, False])
def test_alpha_that_is_zero_everywhere_is_padding_in_a_bmp(header: int, file: bool) -> None:
    """As in Windows and in browsers. Without its first 14 bytes it is a DIB."""
    start = 0 if file else 14
    padded = bmp(b"\x10\x20\x30\0\x40\x50\x60\0", BGRA, header)[start:]
    assert decoded(padded).image.tolist() == [[[48, 32, 16], [96, 80, 64]]]
    padded = bmp(b"\x10\x20\x30\0\x40\x50\x60\0", RGBA, header)[start:]
    assert decoded(padded).image.tolist() == [[[16, 32, 48], [64, 80, 96]]]
    half = bmp(b"\x10\x20\x30\0\x40\x50\x60\xff", BGRA, header)[start:]
    assert decoded(half).image.tolist() == [[[255, 255, 255], [96, 80, 64]]]
