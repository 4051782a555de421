"""Whether it is an image that the model fails on, or the device that is broken for good.

After "CUDA error: device-side assert" every call fails until the process ends; a device whose
memory somebody else took fails as fast. Such a worker would eat its queue and fail every image.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.workers.embedding.proxy import EmbedderProxy


class BrokenDevice(Exception):
    """What the model did before, it does no more: this process has to end."""


class GuardedEmbedder(EmbedderProxy):
    """An embedder which, after a call that failed, is asked for what every model can do. `broken`:
    why it could not do that."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self.broken = ""
        blank = Image.new("RGB", (64, 64), "grey")
        self._known_good = np.stack([embedder.pixels(blank)])

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._tried(lambda: self._embedder.embed_images(pixels))

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._tried(lambda: self._embedder.embed_texts(texts))

    def _tried(self, call: Callable[[], Embeddings]) -> Embeddings:
        try:
            return call()
        except Exception as error:
            self._require_whole(error)
            raise

    def _require_whole(self, error: Exception) -> None:
        try:
            self._embedder.embed_images(self._known_good)
        except Exception as again:
            self.broken = f"the device {self.device} is broken: {first_line(error)}"
            raise BrokenDevice(self.broken) from again


def first_line(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {said.splitlines()[0]}"[:300]
