"""Resizes RGB images as Pillow does, with vector instructions that Pillow does not use.

docs/decisions/0007 has the numbers.
"""

import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import cykooz_resizer as fast
except ImportError:  # no wheel for this platform
    fast = None

Pixels = NDArray[np.uint8]  # [height, width, 3]

FILTERS = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "catmull_rom",
    Image.Resampling.LANCZOS: "lanczos3",
}
# Pillow first reduces an image by a whole number when it is more than this many times too large.
REDUCING_GAP = 6.0
BAND_BYTES = 2_000_000  # smaller: more filters are computed; larger: more fresh pages are touched
_of_thread = threading.local()  # a resizer refuses a call while another thread is in one


def resize(image: Pixels, width: int, height: int, how: Image.Resampling) -> Pixels:
    """Resize an RGB image: the pixels that Pillow gives, except for rounding.

    Args:
        image: uint8 [height, width, 3].
        width: the width of the result, pixels.
        height: the height of the result, pixels.
        how: the filter.
    """
    if image.shape[:2] == (height, width):
        return image
    if fast is None or how not in FILTERS:
        return by_pillow(image, width, height, how)
    return _by_resizer(image, width, height, FILTERS[how])


def by_pillow(image: Pixels, width: int, height: int, how: Image.Resampling) -> Pixels:
    """Resize an RGB image with Pillow."""
    whole = Image.fromarray(image)
    return np.asarray(whole.resize((width, height), how, reducing_gap=REDUCING_GAP))


def _by_resizer(image: Pixels, width: int, height: int, how: str) -> Pixels:
    """First the rows, then the columns, as torch and mostly Pillow do. In one call it is the other
    way round, and what is rounded in between differs in every fifth pixel. The rows are resized in
    bands: the resizer copies its input, and copies of a whole photo cost more than the resizing."""
    resizer = getattr(_of_thread, "resizer", None)
    if resizer is None:
        resizer = _of_thread.resizer = fast.Resizer()
    options = fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType[how]), use_alpha=False)

    def resized(pixels: bytes, size: tuple[int, int], target: tuple[int, int]) -> bytes:
        if size == target:
            return pixels
        result = fast.ImageData(*target, fast.PixelType.U8x3)
        resizer.resize(fast.ImageData(*size, fast.PixelType.U8x3, pixels), result, options)
        buffer: bytes = result.get_buffer()
        return buffer

    band = max(1, BAND_BYTES // image[0].nbytes)
    bands = [image[y : y + band] for y in range(0, len(image), band)]
    rows = b"".join(
        resized(part.tobytes(), (part.shape[1], len(part)), (width, len(part))) for part in bands
    )
    pixels = resized(rows, (width, len(image)), (width, height))
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
