"""Bytes to an RGB image, or BadImage with a reason a person can act on.

Orientation from EXIF is applied; transparency is laid on white; of an animation the first frame
counts; 16-bit and floating-point greys are scaled to 8 bits.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps

from clipfleet.common.errors import BadImage
from clipfleet.common.settings import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

Image.MAX_IMAGE_PIXELS = None  # `limits.image_pixels` decides, before anything is decoded
warnings.filterwarnings("ignore", module="PIL")  # damaged EXIF and such: not worth a log line


@dataclass(frozen=True)
class Decoded:
    """`image` is RGB, and of a large JPEG smaller than `width` x `height`, the size as shown."""

    image: Image.Image
    width: int
    height: int


def decode(data: bytes, limits: Limits, *, edge: int) -> Decoded:
    """A JPEG may be shrunk on the way, its shortest side still at least 2 * `edge` pixels.

    BadImage for anything that is no whole image of an accepted format within the limits.
    """
    try:
        with _opened(data, limits) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
            turned = turned and image.format != "TIFF"  # Pillow has swapped its size already
            width, height = reversed(image.size) if turned else image.size
            _shrink_on_load(image, edge)
            return Decoded(ImageOps.exif_transpose(_rgb(image, edge)), width, height)
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


def _shrink_on_load(image: Image.Image, edge: int) -> None:
    """JPEG only: let the decoder drop resolution nobody will see (a no-op for other formats)."""
    if image.format in ("JPEG", "MPO"):
        scale = 2 * edge / min(image.size)
        if scale < 1:
            image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))


def _rgb(image: Image.Image, edge: int) -> Image.Image:
    """Shrunk by a whole number before anything that needs several copies of it."""
    image.load()
    exif = image.getexif()
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bit(image)
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    factor = min(image.size) // (2 * edge)
    if factor > 1:
        image = image.reduce(factor)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    image.info["exif"] = exif.tobytes()  # the orientation is still to be applied
    return image


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
