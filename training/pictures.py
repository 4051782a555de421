"""Opening a picture the way the shipped image processor sees it, and varying it for training."""

import importlib
import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SIZE = 176
"""Input side in pixels (see the model card for how it was chosen)."""

WHITE = (255, 255, 255)
BACKGROUNDS = (WHITE, (0, 0, 0), (128, 128, 128), (230, 230, 240), (40, 44, 52), (250, 240, 210))
"""Colours put behind transparent drawings: view 0 has the first, view 1 the second."""


def opened(path: Path, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Open a picture as RGB, transparency laid over ``background``."""
    image = Image.open(io.BytesIO(_rasterised(path)) if path.suffix == ".svg" else path)
    if image.mode in ("RGB", "L"):
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGBA", layer.size, (*background, 255))
    return Image.alpha_composite(canvas, layer).convert("RGB")


def _rasterised(path: Path) -> bytes:
    """Render an SVG file as PNG bytes, 256 pixels wide, without system fonts."""
    renderer = importlib.import_module("resvg_py")
    return bytes(renderer.svg_to_bytes(svg_path=str(path), width=256, skip_system_fonts=True))


def view(path: Path, key: str, number: int) -> Image.Image:
    """Return one view: number 0 as the product sees it, others varied, the same every time."""
    if number == 0:
        return opened(path)
    chance = random.Random(f"{key}#{number}")
    behind = BACKGROUNDS[1] if number == 1 else chance.choice(BACKGROUNDS)
    image = _shrunk(opened(path, behind), behind, chance)
    image = _cropped(image, chance)
    flip = chance.random() < 0.5
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def _shrunk(image: Image.Image, behind: tuple[int, int, int], chance: random.Random) -> Image.Image:
    """Sometimes put a margin of up to a quarter around a picture."""
    if chance.random() < 0.7:
        return image
    margin = int(max(image.size) * chance.uniform(0.03, 0.25))
    wide = Image.new("RGB", (image.width + 2 * margin, image.height + 2 * margin), behind)
    wide.paste(image, (margin, margin))
    return wide


def _cropped(image: Image.Image, chance: random.Random) -> Image.Image:
    """Cut out a rectangle of 70 to 100 % of each side."""
    width, height = (max(1, int(side * chance.uniform(0.7, 1.0))) for side in image.size)
    x = chance.randint(0, image.width - width)
    y = chance.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


def pixels(image: Image.Image) -> Tensor:
    """Squash to the input size and scale to [-1, 1]: float32 [3, 176, 176]."""
    small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    raw = torch.from_numpy(np.array(small))
    return raw.permute(2, 0, 1).float() / 127.5 - 1.0
