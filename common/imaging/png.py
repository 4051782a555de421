"""Opens PNG files: without what no picture needs, and with their transparent colour."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAGIC = b"\x89PNG\r\n\x1a\n"
PROFILE = b"Raw profile type exif\0"  # ImageMagick's way to write EXIF, in hexadecimal numbers
MAX_PROFILE = 1_000_000  # bytes, unpacked
GREY = 0  # a type of colour


@dataclass(frozen=True)
class Png:
    """A PNG without the parts that are not needed to decode its first image.

    Attributes:
        data: the file.
        exif: its EXIF; empty for none.
        clear: names the colour that is transparent in a grey or RGB image; empty for none.
    """

    data: bytes
    exif: bytes
    clear: bytes

    @property
    def depth(self) -> int:
        """Bits of a sample."""
        return self.data[24]

    @property
    def colours(self) -> int:
        """The type of colour."""
        return self.data[25]


def read(data: bytes) -> Png:
    """Read a PNG, and leave comments and profiles out: neither their size nor damage in them
    matters then. A part that may be left out and has a wrong checksum is left out, as in browsers.
    """
    kept, exif, clear, place = [data[:8]], b"", b"", 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        after = place + 12 + length
        if not kind.isalpha() or after > len(data):
            kept.append(data[place:])  # cut short or damaged: the decoder says how
            break
        if kind[:1].isupper():
            kept.append(data[place:after])
        elif kind in (b"tRNS", b"eXIf", b"tEXt", b"zTXt"):
            body = data[place + 8 : after - 4]
            if zlib.crc32(kind + body) == int.from_bytes(data[after - 4 : after], "big"):
                if kind == b"tRNS" and data[25:26] in (b"\0", b"\2"):
                    clear = clear or body
                elif kind == b"tRNS":
                    kept.append(data[place:after])
                elif kind == b"eXIf":
                    exif = body
                elif body.startswith(PROFILE):
                    exif = exif or _profile(kind, body[len(PROFILE) :])
        place = after
        if kind == b"IEND":
            break
    return Png(b"".join(kept), exif, clear)


def _profile(kind: bytes, body: bytes) -> bytes:
    """EXIF as hexadecimal numbers, after a line with its name and one with its length."""
    try:
        text = body
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(body[1:], MAX_PROFILE)
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except (ValueError, zlib.error):
        return b""


def transparent(file: Png, image: Image.Image) -> NDArray[np.bool_] | None:
    """Where a grey or RGB image has its transparent colour; None where it names none.

    Pillow compares the colour that the file names with values that it has scaled to 8 bits.

    Args:
        file: the file.
        image: the image as Pillow loads it.
    """
    parts = 1 if file.colours == GREY else 3
    if len(file.clear) < 2 * parts:
        return None
    mask, pixels = 2**file.depth - 1, np.asarray(image)
    key = [part & mask for part in struct.unpack_from(f">{parts}H", file.clear)]
    is_clear: NDArray[np.bool_]
    if file.colours == GREY:
        value: float = key[0]
        if file.depth < 8:
            value = bool(value) if file.depth == 1 else value * (255 // mask)
        is_clear = np.equal(pixels, value)
    elif file.depth == 8:
        is_clear = np.equal(pixels, key).all(axis=2)
    else:
        is_clear = np.equal(pixels, [part >> 8 for part in key]).all(axis=2)
        is_clear &= np.equal(_lower_bytes(file.data), [part & 255 for part in key]).all(axis=2)
    return is_clear


def _lower_bytes(data: bytes) -> NDArray[np.uint8]:
    """The lower bytes of an image with 16 bits a channel: the upper ones, were it little-endian."""
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    return np.asarray(image)
