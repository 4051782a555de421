"""A worker whose model sleeps: `celery -A sleeper worker`, for benchmarks/scale_out.py."""

import os
import time

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding import load

SLEEP_S = float(os.environ.get("SLEEPER_S", "0.05"))


class Sleeper(HashEmbedder):
    def __init__(self, _: Settings) -> None:
        super().__init__()

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        time.sleep(SLEEP_S * len(pixels))
        return super().embed_images(pixels)


load.load_embedder = Sleeper  # type: ignore[assignment]

from clipfleet.workers.app import app  # noqa: E402

__all__ = ["app"]
