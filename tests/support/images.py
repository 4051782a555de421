"""Small images for tests of decoding."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image

from clipfleet.common.errors import BadImage
from clipfleet.common.imaging.decode import Decoded, decode
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.settings import Limits

LIMITS = Limits()
EDGE = 224


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    if kind == "HEIF":
        pillow_heif.register_heif_opener()
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def decoded(data: bytes, edge: int = EDGE) -> Decoded:
    seen = decode(data, LIMITS, edge=edge)
    assert seen.image.shape[2:] == (3,)
    return seen


def halves(width: int, height: int) -> Image.Image:
    """An image that is red on the left and blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def near(image: Pixels, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    seen = image[at[1], at[0]].astype(int)
    return bool(np.abs(seen - np.array(colour)).max() <= 12)


def refused(data: bytes, limits: Limits = LIMITS) -> str:
    """Why a file is refused."""
    try:
        decode(data, limits, edge=EDGE)
    except BadImage as error:
        return error.detail
    raise AssertionError("the file is decoded")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    sum_ = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", sum_)


def png(width: int, height: int, depth: int, colours: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of rows without their filter bytes. Pillow does not write all kinds that it reads."""
    size = len(rows) // height
    filtered = b"".join(b"\0" + rows[at : at + size] for at in range(0, len(rows), size))
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    body = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(filtered)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + png_chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with almost no data."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100)
    chunks = png_chunk(b"IHDR", size), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
