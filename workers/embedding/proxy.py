"""Embedders that wrap another embedder."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.http.fleet import Lane
from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.workers.metrics import WorkerMetrics


class EmbedderProxy:
    """Forwards every call to another embedder; subclasses override what they change."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

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

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._embedder.embed_images(pixels)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._embedder.embed_texts(texts)

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        return self._embedder.cut_texts(texts)


class TimedEmbedder(EmbedderProxy):
    """Observes the time of each pass through the model, as the stage `model` of one lane."""

    def __init__(self, embedder: Embedder, lane: Lane, metrics: WorkerMetrics) -> None:
        super().__init__(embedder)
        self._lane, self._metrics = lane, metrics

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        with self._metrics.timed(self._lane, "model"):
            return self._embedder.embed_images(pixels)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        with self._metrics.timed(self._lane, "model"):
            return self._embedder.embed_texts(texts)
