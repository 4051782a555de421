"""Small images for tests of decoding."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from clipfleet.common.imaging.decode import Decoded, decode
from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.settings import Limits

LIMITS = Limits()
EDGE = 224


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
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


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with almost no data."""

    def part(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", size) + part(b"IDAT", rows) + part(b"IEND", b"")
