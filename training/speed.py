"""Stage: images per second beside ViT-B/32, both with float32 in one run at batch 32.

Both models keep their weights channels last, which costs nothing, changes no result beyond
rounding, and lets depthwise convolutions run half as fast again on a CPU.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from training.encoder import Encoder
from training.pictures import IMAGE_SIZE

BATCH = 32
ROUNDS = 9


@dataclass(frozen=True)
class Speed:
    """Images per second (medians of alternating rounds) and the range of the rounds' ratios."""

    ours: float
    vit_b_32: float
    ratio: float
    ratio_low: float
    ratio_high: float


def speed(encoder: Encoder, clip_folder: Path) -> Speed:
    """Time both models in turns, so that other load on the machine strikes both alike."""
    clip: Any = CLIPModel(CLIPConfig.from_pretrained(clip_folder))
    clip.to(encoder.device, memory_format=torch.channels_last).eval()
    ours = _runner(encoder.model.get_image_features, IMAGE_SIZE, encoder.device)
    theirs = _runner(clip.get_image_features, 224, encoder.device)
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
    ratios = [mine / other for mine, other in pairs]
    return Speed(
        statistics.median(mine for mine, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
    )


def _runner(call: Callable[..., object], size: int, device: str) -> Callable[[], float]:
    """Return a function that times one batch and gives images per second."""
    pixels = torch.randn(BATCH, 3, size, size, device=device)
    pixels = pixels.to(memory_format=torch.channels_last)

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            call(pixel_values=pixels)
        if device != "cpu":
            torch.cuda.synchronize()
        return BATCH / (time.perf_counter() - start)

    return run
