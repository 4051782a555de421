"""A worker whose model sleeps: `celery -A sleeper worker`, for benchmarks/scale_out.py."""

import os
import sys
import time
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.settings import Settings

SLEEP_S = float(os.environ.get("SLEEPER_S", "0.05"))


class Sleeper(HashEmbedder):
    def __init__(self, _: Settings) -> None:
        super().__init__()

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        time.sleep(SLEEP_S * len(pixels))
        return super().embed_images(pixels)


stub = ModuleType("clipfleet.workers.embedding.clip")
vars(stub)["ClipEmbedder"] = Sleeper
sys.modules[stub.__name__] = stub  # no torch is loaded

from clipfleet.workers.app import app  # noqa: E402

__all__ = ["app"]
