"""From a decoded image to the pixels a model wants; the same on the gateway and on workers.

The model's own processor says how (`clipfleet.workers.clip` reads it and checks that this gives
the same); only the normalisation is left to the device.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

Pixels = NDArray[np.uint8]  # [height, width, 3]

MAX_ASPECT = 4.0
# Reducing by whole numbers first is "almost indistinguishable" at 3 (Pillow's documentation).
REDUCING_GAP = 3.0


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

    def apply(self, image: Image.Image) -> Pixels:
        """uint8 [height, width, 3] of an RGB image."""
        if self.shortest is None:
            return np.asarray(self._resized(image, self.width, self.height))
        image = _without_far_ends(image, self.width, self.height)
        scaled = self._resized(image, *_scaled(image.size, self.shortest))
        return _centre(np.asarray(scaled), self.height, self.width)

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        how = Image.Resampling(self.resample)
        return image.resize((width, height), how, reducing_gap=REDUCING_GAP)


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
