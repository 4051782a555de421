"""The embedder port, and one that needs no model, for tests."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipfleet.common.preprocess import Pixels, Preprocess

Embeddings = NDArray[np.float32]  # [n, dim], rows of unit length


class Embedder(Protocol):
    """Row i answers item i, whatever else is in the batch."""

    @property
    def dim(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def preprocess(self) -> Preprocess: ...

    @property
    def batch(self) -> int:
        """How many images are worth handing over at once."""
        ...

    def pixels(self, image: Image.Image) -> Pixels:
        """What `preprocess` makes of an RGB image, but for rounding. Thread-safe."""
        ...

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """uint8 [n, height, width, 3] as `pixels` makes them."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Embeddings: ...


class HashEmbedder:
    """Deterministic nonsense: equal items get equal embeddings, others unrelated ones."""

    device = "none"
    batch = 32
    preprocess = Preprocess(shortest=8, height=8, width=8)

    def __init__(self, dim: int = 16) -> None:
        self.dim = dim

    def pixels(self, image: Image.Image) -> Pixels:
        return self.preprocess.apply(image)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._rows([image.tobytes() for image in pixels])

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._rows([text.encode() for text in texts])

    def _rows(self, items: Sequence[bytes]) -> Embeddings:
        rows = np.empty((len(items), self.dim), np.float32)
        for row, item in zip(rows, items, strict=True):
            seed = int.from_bytes(hashlib.blake2b(item, digest_size=8).digest(), "big")
            row[:] = np.random.default_rng(seed).standard_normal(self.dim)
            row /= np.linalg.norm(row)
        return rows
