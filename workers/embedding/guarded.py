"""Detection of a broken device, as opposed to an image on which the model fails.

After "CUDA error: device-side assert" every call fails until the process ends. A device whose
memory another process took fails as fast. Such a worker would take all messages of its queue and
fail every image.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.workers.embedding.proxy import EmbedderProxy


class BrokenDevice(Exception):
    """The device is broken for good; the worker process must exit."""


class GuardedEmbedder(EmbedderProxy):
    """Checks the device after a failed call, by embedding an image that worked before.

    Raises BrokenDevice if the check fails, and otherwise the error of the call.

    Attributes:
        broken: the reason why the device is broken; "" while it works.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self.broken = ""
        blank = np.full((64, 64, 3), 128, np.uint8)
        self._known_good = np.stack([embedder.preprocess.apply(blank)])

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._guarded(lambda: self._embedder.embed_images(pixels))

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._guarded(lambda: self._embedder.embed_texts(texts))

    def _guarded(self, call: Callable[[], Embeddings]) -> Embeddings:
        try:
            return call()
        except Exception as error:
            self._require_working_device(error)
            raise

    def _require_working_device(self, error: Exception) -> None:
        try:
            self._embedder.embed_images(self._known_good)
        except Exception as again:
            self.broken = f"the device {self.device} is broken: {first_line(error)}"
            raise BrokenDevice(self.broken) from again


def first_line(error: Exception) -> str:
    """The type and the first line of an error, at most 300 characters."""
    message = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {message.splitlines()[0]}"[:300]
