"""From a decoded image to the pixels a model wants; the same on the gateway and on workers.

The model's own processor says how. `workers/embedding/clip.py` reads it, and checks that this gives
the same. Only the normalisation is left to the device. A worker resizes with a faster kernel than
Pillow's, to the same pixels but for rounding: docs/decisions/0007.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

Pixels = NDArray[np.uint8]  # [height, width, 3]

# (RGB image, width, height, filter) to uint8 [height, width, 3]
Resize = Callable[[Image.Image, int, int, Image.Resampling], Pixels]

MAX_ASPECT = 4.0
# Pillow first reduces by a whole number what is more than twice this many times too large.
REDUCING_GAP = 6.0


def by_pillow(image: Image.Image, width: int, height: int, how: Image.Resampling) -> Pixels:
    return np.asarray(image.resize((width, height), how, reducing_gap=REDUCING_GAP))


class Preprocess(BaseModel):
    """Resize (`shortest` edge, or to `height` x `width` regardless of shape), then centre crop."""

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    shortest: int | None = None
    height: int
    width: int
    resample: int = int(Image.Resampling.BICUBIC)

    def edge(self) -> int:
        """A shortest edge, in pixels, below which decoding must not shrink an image."""
        return self.shortest or max(self.height, self.width)

    def apply(self, image: Image.Image, resize: Resize = by_pillow) -> Pixels:
        """uint8 [height, width, 3] of an RGB image."""
        how = Image.Resampling(self.resample)
        if self.shortest is None:
            return resize(image, self.width, self.height, how)
        image = _without_far_ends(image, self.width, self.height)
        scaled = resize(image, *_scaled(image.size, self.shortest), how)
        return _centre(scaled, self.height, self.width)


def _scaled(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def _without_far_ends(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut what a centre crop never sees, so that a 1 x 60,000 strip cannot fill the memory."""
    limit = MAX_ASPECT * max(width / height, height / width)
    longest = max(1, int(min(image.size) * limit))
    if max(image.size) <= longest:
        return image
    if image.width > image.height:
        left = (image.width - longest) // 2
        return image.crop((left, 0, left + longest, image.height))
    top = (image.height - longest) // 2
    return image.crop((0, top, image.width, top + longest))


def _centre(pixels: Pixels, height: int, width: int) -> Pixels:
    """Crop, or pad with black where the image is smaller."""
    missing_h, missing_w = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    if missing_h or missing_w:
        before = ((missing_h + 1) // 2, (missing_w + 1) // 2)
        after = (missing_h - before[0], missing_w - before[1])
        pixels = np.pad(pixels, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
