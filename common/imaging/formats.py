"""Recognises and opens image files by their content.

Everything that is not needed to decode the image (EXIF but for the orientation, XMP, profiles,
comments) is kept away from Pillow, which refuses a whole file for damage in it.
"""

import importlib
import io
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from clipfleet.common.errors import BadImage
from clipfleet.common.http.suffixes import SUFFIXES as SUFFIXES
from clipfleet.common.imaging import png, tiff

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")

Image.MAX_IMAGE_PIXELS = None  # `limits.image_pixels` is checked in its place, before decoding
warnings.filterwarnings("ignore", module="PIL")  # about damaged EXIF, for example

HEIF_BRANDS = (
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"mif1",
    b"msf1",
)
PILLOW = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "AVIF")  # what it opens here
XMP = ("xmp", "XML:com.adobe.xmp")
JPEG = b"\xff\xd8\xff"
START_OF_SCAN = 0xDA
APPLICATIONS = frozenset({*range(0xE0, 0xEE), 0xEF, 0xFE})  # segments; the last holds a comment
# In the directory of an AVIF or HEIF file: an item of EXIF, with its number of 2 or 4 bytes.
EXIF_ITEM = re.compile(rb"(infe[\x02\x03]...(?:..|....)..)Exif", re.DOTALL)

# What people take for photos, and no decoder here reads: a name, and how the files begin.
OTHERS = (
    ("a JPEG 2000 image", re.compile(rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51")),
    ("a JPEG XL image", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("a Photoshop document", re.compile(rb"8BPS")),
    ("an icon (ICO)", re.compile(rb"\0\0[\x01\x02]\0")),
    (
        "an SVG drawing",
        re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>)?\s*(<!--.*?-->\s*)*(<!DOCTYPE svg|<svg)"),
    ),
    (
        "a web page",
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", re.IGNORECASE),
    ),
    ("a PDF document", re.compile(rb"%PDF-")),
    (
        "a video",
        re.compile(rb"....ftyp(isom|iso[2-9]|mp4[12]|M4V |qt  |avc1)|\x1aE\xdf\xa3", re.DOTALL),
    ),
    (
        "a raw photo of a camera",
        re.compile(rb"FUJIFILMCCD-RAW|....ftypcrx |IIRO|IIRS|IIU\0", re.DOTALL),
    ),
    ("a zip archive", re.compile(rb"PK\x03\x04")),
    ("a Git LFS pointer, not the file itself", re.compile(rb"version https://git-lfs")),
)


QUOTED = re.compile(r"b?(['\"]).*?\1", re.DOTALL)  # parts of a file, which no error may contain


@dataclass(frozen=True)
class Opened:
    """An image file whose header is read.

    Attributes:
        format: the format, a name of Pillow.
        mode: the mode in which Pillow loads it; "" when that is not known.
        size: width and height in pixels, as stored.
        orientation: as in EXIF, 1 to 8.
        load: decodes the image, not turned. A JPEG may be shrunk to the size given.
        exif: its EXIF, which may be damaged; the file itself if it is a TIFF; empty for none.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    load: Callable[[tuple[int, int] | None], Image.Image]
    exif: bytes = b""


def opened(data: bytes, max_pixels: int) -> Opened:
    """Open an image file.

    Args:
        data: the bytes of the file.
        max_pixels: bounds the samples of a TIFF: eight bytes for each. The caller checks `size`.

    Raises:
        BadImage: it is none, or of a kind that is not read.
    """
    if data.startswith(tiff.MAGIC):
        return _tiff(data, max_pixels)
    packed = png.read(data) if data.startswith(png.MAGIC) else None
    image = _image(packed.data if packed else data)
    for name in XMP:  # browsers ignore an orientation in XMP, and Pillow does not
        image.info.pop(name, None)
    exif: bytes = packed.exif if packed else image.info.get("exif") or b""
    orientation = 1 if image.format == "HEIF" else _orientation(exif)  # libheif has turned it

    def load(size: tuple[int, int] | None) -> Image.Image:
        if size and image.format in ("JPEG", "MPO"):
            image.draft(None, size)
        image.load()
        if packed:
            return _on_white(image, png.transparent(packed, image))
        if image.format in ("BMP", "DIB") and image.mode == "RGBA":
            empty = image.getchannel("A").getextrema() == (0, 0)
            return image.convert("RGB") if empty else image
        return image

    return Opened(image.format or "", image.mode, image.size, orientation, load, exif)


def _tiff(data: bytes, max_pixels: int) -> Opened:
    file = tiff.Tiff.read(data)
    if min(file.size) <= 0:
        raise BadImage("the TIFF is damaged or cut short (it names no width and height)")
    max_bytes = tiff.BYTES_PER_PIXEL * max_pixels
    orientation = file.orientation if 1 <= file.orientation <= 8 else 1
    return Opened("TIFF", "", file.size, orientation, lambda _: file.image(max_bytes), data)


def _image(data: bytes) -> Image.Image:
    is_heif = data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS
    formats = ("AVIF", "HEIF") if is_heif and _heif() else PILLOW
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Exception as error:
        if bare := _without_metadata(data):
            image = _image(bare.data)
            image.info["exif"] = bare.exif or image.info.get("exif", b"")
            return image
        raise BadImage(_reason(data, formats)) from error


class Bare(NamedTuple):
    """A file without the parts that are not needed to decode it, and its EXIF."""

    data: bytes
    exif: bytes = b""


def _without_metadata(data: bytes) -> Bare | None:
    """The file without its EXIF and what else Pillow may stumble over; None if there is nothing to
    leave out."""
    if data[4:8] == b"ftyp":
        bare = Bare(EXIF_ITEM.sub(rb"\1free", data))
    elif data.startswith(JPEG):
        bare = _bare_jpeg(data)
    else:
        return None
    return bare if bare.data != data else None


def _bare_jpeg(data: bytes) -> Bare:
    """A JPEG without the segments of applications but Adobe's, which is about colours."""
    kept, exif, place = [data[:2]], b"", 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != START_OF_SCAN:
        kind, length = struct.unpack_from(">BH", data, place + 1)
        body = data[place + 4 : place + 2 + length]
        if kind == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        if kind not in APPLICATIONS:
            kept.append(data[place : place + 2 + length])
        place += 2 + length
    return Bare(b"".join((*kept, data[place:])), exif)


@cache
def _heif() -> bool:
    """Make Pillow read HEIF. False where the package for it is missing."""
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return True


def _reason(data: bytes, formats: Sequence[str]) -> str:
    """Why the file is not opened."""
    known = ", ".join(FORMATS)
    for what, beginning in OTHERS:
        if beginning.match(data[:1_000]):
            return f"the file is {what}, and contains no image of a known format ({known})"
    for name in formats:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if name == "DIB" or factory is None or accepts is None or accepts(data[:16]) is not True:
            continue
        try:
            factory(io.BytesIO(data), "").close()
        except Exception as error:  # codecs raise errors of any class
            why = without_quotes(str(error))
            if name == "AVIF" and data[8:12] in HEIF_BRANDS:
                continue
            return f"the {name} is damaged, cut short, or of a kind that is not read ({why})"
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and "HEIF" not in formats:
        return (
            "the file is a HEIF image (HEIC), which is read where clipfleet is installed with the "
            "extra `heif`: pip install 'clipfleet[heif]', on gateways and workers"
        )
    return f"the file is damaged or contains no image of a known format ({known})"


def without_quotes(message: str) -> str:
    """The message of a decoder, shortened, and without what it quotes of the file."""
    return QUOTED.sub("…", message)[:200]


def _orientation(exif: bytes) -> int:
    """The orientation from EXIF; 1 where there is none, or where it is damaged."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ExifTags.Base.Orientation, 1)
    except Exception:  # the parser raises errors of any class
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _on_white(image: Image.Image, where: NDArray[np.bool_] | None) -> Image.Image:
    if where is None:
        return image
    if image.mode == "I;16":
        grey = np.asarray(image) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    pixels = np.array(image.convert("RGB"))
    pixels[where] = 255
    return Image.fromarray(pixels)
