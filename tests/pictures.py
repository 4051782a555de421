"""Small images for the tests of decoding."""

import io

import numpy as np
from PIL import Image

from clipfleet.common.images import Decoded, decode
from clipfleet.common.settings import Limits

LIMITS = Limits()
EDGE = 224


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def decoded(data: bytes, edge: int = EDGE) -> Decoded:
    seen = decode(data, LIMITS, edge=edge)
    assert seen.image.mode == "RGB"
    return seen


def halves(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def near(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    seen = np.asarray(image)[at[1], at[0]].astype(int)
    return bool(np.abs(seen - np.array(colour)).max() <= 12)
