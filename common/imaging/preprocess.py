"""Prepares the pixels of a decoded image for a model, on the gateway and on workers alike.

The library of the model defines how. `workers/embedding/of_transformers.py` and `of_open_clip.py`
read it, and `clip.py` beside them checks that the pixels here are the same. Only the normalisation
is done on the device.
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
        v: the version of this record; 2 when it has one of `sides`, `crop` and `fill`.
        shortest: the shortest edge after resizing, before the centre crop, pixels; None: resize by
            `sides`.
        height: the height of the result, pixels.
        width: the width of the result, pixels.
        resample: the filter, a value of `PIL.Image.Resampling`.
        sides: without `shortest`: "" resizes to `height` x `width`, whatever the shape of the
            image; "cover" keeps the shape and crops what is over, "fit" keeps it and pads.
        crop: how the place of a crop is rounded when it is half a pixel off: "down", or "nearest",
            to the even number.
        fill: the grey level of what is padded.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1, 2] = 1
    shortest: int | None = None
    height: int
    width: int
    resample: int = int(Image.Resampling.BICUBIC)
    sides: Literal["", "cover", "fit"] = ""
    crop: Literal["down", "nearest"] = "down"
    fill: int = 0

    def edge(self) -> int:
        """The edge of the model's input in pixels, for `decode`."""
        return self.shortest or max(self.height, self.width)

    def apply(self, image: Pixels) -> Pixels:
        """Resize and crop an RGB image, uint8 [height, width, 3]; returns such an image."""
        how = Image.Resampling(self.resample)
        if self.shortest is None and not self.sides:
            return resize(image, self.width, self.height, how)
        if self.sides != "fit":
            image = _without_far_ends(image, self.width, self.height)
        scaled = resize(image, *self._scaled(image), how)
        return self._centre(scaled)

    def _scaled(self, image: Pixels) -> tuple[int, int]:
        """The width and the height to which an image is resized."""
        height, width, _ = image.shape
        if self.shortest is not None:
            return _scaled(image, self.shortest)
        ratios = (height / self.height, width / self.width)
        ratio = min(ratios) if self.sides == "cover" else max(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _centre(self, pixels: Pixels) -> Pixels:
        """Crop to the centre, or pad when the image is smaller."""
        missing = (max(0, self.height - pixels.shape[0]), max(0, self.width - pixels.shape[1]))
        if any(missing):
            # transformers has the odd line before the image, open_clip after it.
            before = [(lines + (self.crop == "down")) // 2 for lines in missing]
            around = [(n, lines - n) for n, lines in zip(before, missing, strict=True)]
            pixels = np.pad(pixels, (*around, (0, 0)), constant_values=self.fill)
        over = (pixels.shape[0] - self.height, pixels.shape[1] - self.width)
        y, x = (lines // 2 if self.crop == "down" else round(lines / 2) for lines in over)
        return pixels[y : y + self.height, x : x + self.width]


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
