"""Decodes image files to RGB.

The orientation from EXIF is applied; transparent images get a white background; the first frame of
an animation is used; 16-bit and floating-point values are scaled to 8 bits. docs/images.md
describes this for users.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from clipfleet.common.errors import BadImage
from clipfleet.common.imaging.formats import FORMATS as FORMATS
from clipfleet.common.imaging.formats import SUFFIXES as SUFFIXES
from clipfleet.common.imaging.formats import Opened, opened, without_quotes
from clipfleet.common.imaging.resize import Pixels
from clipfleet.common.settings import Limits

# Decoding may shrink an image to this many times the edge of the model's input. With less, the
# embeddings change noticeably: docs/decisions/0007.
OVERSAMPLING = 5

LARGE_PIXELS = 4_000_000  # with `in_memory`, larger images are decoded one at a time
_large_images = threading.Lock()

ROTATIONS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        image: the image, RGB and upright, uint8 [height, width, 3]; smaller than `width` x `height`
            when it was shrunk.
        width: the width of the file's image in pixels, as shown.
        height: the height of the file's image in pixels, as shown.
        exif: its EXIF, as `exif_fields` takes it.
        jpeg: the file, if it is an ordinary JPEG that holds exactly `image`; else empty.
    """

    image: Pixels
    width: int
    height: int
    exif: bytes = b""
    jpeg: bytes = b""


def decode(data: bytes, limits: Limits, *, edge: int, in_memory: int | None = None) -> Decoded:
    """Decode an image file.

    A large image may be shrunk while it is decoded, to no less than OVERSAMPLING * `edge` pixels.

    Args:
        data: the bytes of the file.
        limits: the limits of bytes and pixels of a file.
        edge: the edge of the model's input, pixels.
        in_memory: the number of pixels of the decoded image at most; None: no limit. Large images
            are then decoded one at a time.

    Raises:
        BadImage: the bytes are not a whole image of an accepted format within the limits.
    """
    try:
        file = _open_checked(data, limits, in_memory or limits.image_pixels)
        with _decoding_slot(file, edge, in_memory):
            width, height = file.size[::-1] if file.orientation in SIDEWAYS else file.size
            pixels = _plain_jpeg(data, file, edge)
            is_whole = pixels is not None and pixels.shape[:2] == file.size[::-1]
            if pixels is None:
                pixels = np.asarray(_to_rgb(file, edge))
            if file.orientation in ROTATIONS:
                turned = Image.fromarray(pixels).transpose(ROTATIONS[file.orientation])
                return Decoded(np.asarray(turned), width, height, file.exif)
            return Decoded(pixels, width, height, file.exif, data if is_whole else b"")
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # codecs raise errors of any class
        raise BadImage(f"the image is damaged or cut short ({_summary(error)})") from error


def read_exif(data: bytes, limits: Limits) -> bytes:
    """The EXIF of an image file, as `exif_fields` takes it, without decoding the image.

    Raises:
        BadImage: the bytes are not an image of an accepted format within the limits.
    """
    try:
        return _open_checked(data, limits, limits.image_pixels).exif
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # codecs raise errors of any class
        raise BadImage(f"the image is damaged or cut short ({_summary(error)})") from error


def _open_checked(data: bytes, limits: Limits, max_pixels: int) -> Opened:
    if not data:
        raise BadImage("the file is empty")
    if len(data) > limits.image_bytes:
        raise BadImage(f"the file has {len(data)} bytes; the limit is {limits.image_bytes}")
    file = opened(data, max_pixels)
    width, height = file.size
    if width * height > limits.image_pixels:
        raise BadImage(f"the image has {width}x{height} pixels; the limit is {limits.image_pixels}")
    return file


def _decoding_slot(
    file: Opened, edge: int, max_pixels: int | None
) -> AbstractContextManager[object]:
    """A context for decoding the image. BadImage when it has more than `max_pixels`."""
    if max_pixels is None:
        return nullcontext()
    width, height = file.size
    scale = _scale(file.size, edge) if file.format in ("JPEG", "MPO") else 1
    pixels = width * height // scale**2
    if pixels > max_pixels:
        raise BadImage(
            f"the image has {width}x{height} pixels; the limit for an image to search "
            f"by or to embed is {max_pixels} (CLIPFLEET_LIMITS__QUERY_PIXELS), and higher for a "
            "JPEG whose sides are multiples of 8"
        )
    return _large_images if pixels > LARGE_PIXELS else nullcontext()


def _plain_jpeg(data: bytes, file: Opened, edge: int) -> Pixels | None:
    """Decode an ordinary JPEG with the faster decoder: docs/decisions/0008.

    None for all other images, and for a damaged JPEG: Pillow says what is wrong with it.
    """
    if file.format != "JPEG" or file.mode != "RGB":
        return None
    scale = _scale(file.size, edge)
    width, height = (side // scale for side in file.size) if scale > 1 else (0, 0)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels


def _scale(size: tuple[int, int], edge: int) -> int:
    """The factor by which the decoder may shrink a JPEG: 8, 4, 2 or 1.

    The factor divides both sides. Otherwise the last column covers fewer pixels than the others,
    which stretches the whole image.
    """
    for scale in (8, 4, 2):
        fits = min(size) >= scale * OVERSAMPLING * edge
        if fits and not (size[0] % scale or size[1] % scale):
            return scale
    return 1


def _to_rgb(file: Opened, edge: int) -> Image.Image:
    width, height = file.size
    scale = _scale(file.size, edge)
    image = file.load((width // scale, height // scale) if scale > 1 else None)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_eight_bit(image)
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied; Pillow converts only to the same colours
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = _reduced(image, edge).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _reduced(image: Image.Image, edge: int) -> Image.Image:
    """Shrink a large image before it is copied several times."""
    factor = min(image.size) // (OVERSAMPLING * edge)
    if factor <= 1:
        return image
    return image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)


def _to_eight_bit(image: Image.Image) -> Image.Image:
    whole = np.asarray(image)
    return Image.fromarray((np.clip(whole, 0, 65_535) // 257).astype(np.uint8))


def _summary(error: Exception) -> str:
    return without_quotes(f"{type(error).__name__}: {error}")
