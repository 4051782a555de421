"""Prepares the pixels of a decoded image for a model, on the gateway and on workers alike.

The processor of the model defines how. `workers/embedding/clip.py` reads it, and checks that the
pixels here are the same. Only the normalisation is done on the device.
"""

from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from clipfleet.common.imaging.resize import Pixels as Pixels
from clipfleet.common.imaging.resize import resize

MAX_ASPECT = 4.0


class Preprocess(BaseModel):
    """How to resize and crop an image for a model.

    Attributes:
        v: the version of this record.
        shortest: the shortest edge after resizing, before the centre crop, pixels; None: resize to
            `height` x `width`, whatever the shape of the image.
        height: the height of the result, pixels.
        width: the width of the result, pixels.
        resample: the filter, a value of `PIL.Image.Resampling`.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    shortest: int | None = None
    height: int
    width: int
    resample: int = int(Image.Resampling.BICUBIC)

    def edge(self) -> int:
        """The edge of the model's input in pixels, for `decode`."""
        return self.shortest or max(self.height, self.width)

    def apply(self, image: Pixels) -> Pixels:
        """Resize and crop an RGB image, uint8 [height, width, 3]; returns such an image."""
        how = Image.Resampling(self.resample)
        if self.shortest is None:
            return resize(image, self.width, self.height, how)
        image = _without_far_ends(image, self.width, self.height)
        scaled = resize(image, *_scaled(image, self.shortest), how)
        return _centre(scaled, self.height, self.width)


def _scaled(image: Pixels, shortest: int) -> tuple[int, int]:
    height, width, _ = image.shape
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def _without_far_ends(image: Pixels, width: int, height: int) -> Pixels:
    """Cut parts that the centre crop never uses, so that a 1 x 60,000 strip fits into memory."""
    limit = MAX_ASPECT * max(width / height, height / width)
    longest = max(1, int(min(image.shape[:2]) * limit))
    y, x = (max(0, (side - longest) // 2) for side in image.shape[:2])
    return image[y : y + longest, x : x + longest]


def _centre(pixels: Pixels, height: int, width: int) -> Pixels:
    """Crop to the centre, or pad with black when the image is smaller."""
    missing_h, missing_w = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    if missing_h or missing_w:
        before = ((missing_h + 1) // 2, (missing_w + 1) // 2)
        after = (missing_h - before[0], missing_w - before[1])
        pixels = np.pad(pixels, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    y, x = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[y : y + height, x : x + width]
