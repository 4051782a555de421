"""Stage: bad input must give finite unit vectors that do not depend on the rest of the batch."""

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from training.encoder import Encoder

TEXTS = {
    "empty": "",
    "blank": " \t\n",
    "one letter": "a",
    "ten thousand words": "word " * 10_000,
    "chinese": "一只猫坐在桌子上",
    "arabic": "قطة على الطاولة",
    "russian": "кошка на столе",
    "emoji": "🐱🎉👩‍👩‍👧",
    "control characters": "\x00\x07a\u200b",
    "plain": "a photo of a dog",
}
IMAGES = {
    "one pixel": Image.new("RGB", (1, 1), (200, 30, 30)),
    "thin": Image.new("RGB", (2000, 1)),
    "black": Image.new("RGB", (300, 200)),
    "white": Image.new("RGB", (64, 64), (255, 255, 255)),
}
TOLERANCE = 1e-4
"""Largest difference allowed between a vector made alone and one made in a batch."""


def check(encoder: Encoder) -> dict[str, float]:
    """Return the largest difference per input; raise where a vector is not a unit vector."""
    texts = _differences(
        {name: encoder.texts([text]) for name, text in TEXTS.items()},
        encoder.texts(list(TEXTS.values())),
    )
    images = _differences(
        {name: encoder.images([image]) for name, image in IMAGES.items()},
        encoder.images(list(IMAGES.values())),
    )
    return texts | images


def _differences(alone: Mapping[str, Tensor], together: Tensor) -> dict[str, float]:
    """Compare vectors [1, d] made alone with the rows [n, d] made in one batch."""
    differences = {}
    for (name, single), row in zip(alone.items(), together, strict=True):
        differences[name] = float((single[0] - row).abs().max())
        whole = bool(torch.isfinite(single).all()) and abs(float(single.norm()) - 1) < TOLERANCE
        if not whole or differences[name] > TOLERANCE:
            raise ValueError(f"{name}: not a unit vector, or it depends on its batch")
    return differences
