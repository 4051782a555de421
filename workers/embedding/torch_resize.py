"""Resizes images with torch. Feeders import this module, so it imports nothing of the model."""

import numpy as np
import torch
from PIL import Image

from clipfleet.common.imaging.preprocess import REDUCING_GAP, Pixels, by_pillow

TORCH_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def by_torch(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Pixels:
    """Resize as Pillow does, with vector instructions that Pillow does not use."""
    mode = TORCH_FILTERS.get(resample)
    huge = min(image.width / width, image.height / height) >= 2 * REDUCING_GAP
    if mode is None or huge:  # copying so many pixels out of Pillow costs more than it saves
        return by_pillow(image, width, height, resample)
    batch = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
    size = (height, width)
    small = torch.nn.functional.interpolate(batch, size, mode=mode, antialias=True)
    return np.asarray(small[0].permute(1, 2, 0).numpy())
