"""An embedder whose passes through the model are timed, for one lane."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipfleet.common.embedder import Embedder, Embeddings
from clipfleet.common.messages import Lane
from clipfleet.common.preprocess import Pixels, Preprocess
from clipfleet.workers.metrics import WorkerMetrics


class Timed:
    """Everything else is the embedder's own."""

    def __init__(self, embedder: Embedder, lane: Lane, metrics: WorkerMetrics) -> None:
        self._embedder, self._lane, self._metrics = embedder, lane, metrics

    @property
    def dim(self) -> int:
        return self._embedder.dim

    @property
    def device(self) -> str:
        return self._embedder.device

    @property
    def preprocess(self) -> Preprocess:
        return self._embedder.preprocess

    @property
    def batch(self) -> int:
        return self._embedder.batch

    def pixels(self, image: Image.Image) -> Pixels:
        return self._embedder.pixels(image)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        with self._metrics.timed(self._lane, "model"):
            return self._embedder.embed_images(pixels)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        with self._metrics.timed(self._lane, "model"):
            return self._embedder.embed_texts(texts)
