"""Bytes to an RGB image, or BadImage with a reason a person can act on.

Orientation from EXIF is applied; transparency is laid on white; of an animation the first frame
counts; 16-bit and floating-point greys are scaled to 8 bits. docs/images.md says it for users.
"""

import io
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from clipfleet.common.errors import BadImage
from clipfleet.common.settings import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)

# A model sees the difference when an image is shrunk to less than this many times its own edge
# before the real resize: docs/decisions/0007.
OVERSAMPLING = 5

LARGE_PIXELS = 4_000_000
_large = threading.Lock()

TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # these swap width and height

Image.MAX_IMAGE_PIXELS = None  # `limits.image_pixels` decides, before anything is decoded
warnings.filterwarnings("ignore", module="PIL")  # damaged EXIF and such: not worth a log line


@dataclass(frozen=True)
class Decoded:
    """`image` is RGB, and of a large JPEG smaller than `width` x `height`, the size as shown."""

    image: Image.Image
    width: int
    height: int


def decode(data: bytes, limits: Limits, *, edge: int, in_memory: int | None = None) -> Decoded:
    """A large image may be shrunk on the way, to no less than OVERSAMPLING * `edge` pixels.

    BadImage for anything that is no whole image of an accepted format within the limits.
    `in_memory`: pixels that it may have once it is decoded, after what a JPEG is shrunk by; large
    ones are then decoded one at a time.
    """
    try:
        with _opened(data, limits) as image, _turn(image, edge, in_memory):
            orientation = _orientation(image)
            width, height = reversed(image.size) if orientation in SIDEWAYS else image.size
            upright = _small_jpeg(data, image, edge) or _rgb(image, edge)
            if orientation in TURNS:
                upright = upright.transpose(TURNS[orientation])
            return Decoded(upright, width, height)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # codecs raise whatever they like
        raise BadImage(f"the image is damaged or cut short ({_brief(error)})") from error


def _opened(data: bytes, limits: Limits) -> Image.Image:
    if not data:
        raise BadImage("the file is empty")
    if len(data) > limits.image_bytes:
        raise BadImage(f"the file has {len(data)} bytes; the limit is {limits.image_bytes}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        known = ", ".join(FORMATS)
        raise BadImage(f"the file is no image that we know ({known}), or damaged") from error
    width, height = image.size
    if width * height > limits.image_pixels:
        raise BadImage(f"the image has {width}x{height} pixels; the limit is {limits.image_pixels}")
    return image


def _turn(image: Image.Image, edge: int, most: int | None) -> AbstractContextManager[object]:
    """For decoding it. BadImage when it has too many pixels."""
    if most is None:
        return nullcontext()
    scale = _scale(image, edge) if image.format in ("JPEG", "MPO") else 1
    pixels = image.width * image.height // scale**2
    if pixels > most:
        raise BadImage(
            f"the image has {image.width}x{image.height} pixels; an image to search by, or to "
            f"embed, has {most} at most, unless it is a JPEG whose sides can be divided by 8 "
            "(CLIPFLEET_LIMITS__QUERY_PIXELS)"
        )
    return _large if pixels > LARGE_PIXELS else nullcontext()


def _orientation(image: Image.Image) -> object:
    """A TIFF is turned by Pillow itself as it loads."""
    return 1 if image.format == "TIFF" else image.getexif().get(ExifTags.Base.Orientation, 1)


def _small_jpeg(data: bytes, image: Image.Image, edge: int) -> Image.Image | None:
    """What most images are, by the faster decoder: docs/decisions/0008. None for all others, and
    for a damaged one, of which Pillow says what is wrong."""
    if image.format != "JPEG" or image.mode != "RGB" or _scale(image, edge) > 1:
        return None
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError:
        return None


def _scale(image: Image.Image, edge: int) -> int:
    """By how much the decoder of a JPEG may shrink it, leaving out what nobody will see.

    Only by what divides both sides: otherwise the last column stands for less than the others,
    and the whole image is stretched by it.
    """
    for scale in (8, 4, 2):
        fits = min(image.size) >= scale * OVERSAMPLING * edge
        if fits and not (image.width % scale or image.height % scale):
            return scale
    return 1


def _rgb(image: Image.Image, edge: int) -> Image.Image:
    if image.format in ("JPEG", "MPO") and (scale := _scale(image, edge)) > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bit(image)
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = _spared(image, edge).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _spared(image: Image.Image, edge: int) -> Image.Image:
    """Shrunk, where it is large, before it is copied several times over."""
    factor = min(image.size) // (OVERSAMPLING * edge)
    if factor <= 1:
        return image
    return image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode != "F":
        whole = np.asarray(image)
        return Image.fromarray((np.clip(whole, 0, 65_535) // 257).astype(np.uint8))
    grey = np.array(image)
    grey[~np.isfinite(grey)] = 0
    grey *= 255.0 / max(1.0, float(grey.max()))
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
