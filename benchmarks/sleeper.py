"""A worker whose model sleeps SLEEPER_S an image: `celery -A sleeper worker`.

For benchmarks/scale_out.py and, with FEED_S for its feeders, benchmarks/simulated_host.py.
"""

import os
import threading
import time

import numpy as np
from numpy.typing import NDArray
from sleeping_feeder import FEED_S, SleepingPreprocess

from clipfleet.common.imaging.embedder import Embeddings, HashEmbedder
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding import load

DIM = int(os.environ.get("SLEEPER_DIM", "16"))
BATCH = int(os.environ.get("SLEEPER_BATCH", "32"))
SLEEP_S = float(os.environ.get("SLEEPER_S", "0.05"))


class Sleeper(HashEmbedder):
    def __init__(self, _: Settings) -> None:
        super().__init__(DIM, BATCH)
        self._device = threading.Lock()
        if FEED_S:
            self.preprocess = SleepingPreprocess(shortest=224, height=224, width=224)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        with self._device:  # one device, whatever the number of turns
            time.sleep(SLEEP_S * len(pixels))
        if not FEED_S:
            return super().embed_images(pixels)
        rows = np.random.default_rng().standard_normal((len(pixels), self.dim), np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


load.load_embedder = Sleeper  # type: ignore[assignment]

from clipfleet.workers.app import app  # noqa: E402

__all__ = ["app"]
