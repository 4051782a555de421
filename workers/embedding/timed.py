"""An embedder whose passes through the model are timed, for one lane."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.http.fleet import Lane
from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.workers.embedding.proxy import EmbedderProxy
from clipfleet.workers.metrics import WorkerMetrics


class TimedEmbedder(EmbedderProxy):
    def __init__(self, embedder: Embedder, lane: Lane, metrics: WorkerMetrics) -> None:
        super().__init__(embedder)
        self._lane, self._metrics = lane, metrics

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        with self._metrics.timed(self._lane, "model"):
            return self._embedder.embed_images(pixels)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        with self._metrics.timed(self._lane, "model"):
            return self._embedder.embed_texts(texts)
