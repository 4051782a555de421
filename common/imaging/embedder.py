"""The embedder port, and `HashEmbedder`, which needs no model."""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.preprocess import Pixels, Preprocess

Embeddings = NDArray[np.float32]  # [n, dim], rows of unit length
HASH_MODEL = "hash:"  # CLIPFLEET_MODEL=hash:64
MAX_HASH_DIM = 4096


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
    """Embeddings from a hash of the input: equal inputs get equal rows, others unrelated rows.

    For tests, and for trying a service without a model: `CLIPFLEET_MODEL=hash:64`. A search finds
    the same picture or the same words again and nothing that is similar.

    Args:
        dim: the length of an embedding.
        batch: how many images a worker hands over at once.
    """

    device = "none"
    preprocess = Preprocess(shortest=8, height=8, width=8)

    def __init__(self, dim: int = 16, batch: int = 32) -> None:
        self.dim, self.batch = dim, batch

    @classmethod
    def named(cls, model: str, batch: int = 0) -> "HashEmbedder":
        """The embedder of the model name `hash:DIM`. StartupError when the name is another."""
        match = re.fullmatch(rf"{HASH_MODEL}([0-9]{{1,4}})", model)
        dim = int(match[1]) if match else 0
        if not 2 <= dim <= MAX_HASH_DIM:
            raise StartupError(
                f"CLIPFLEET_MODEL={model}: write {HASH_MODEL}DIM, as in {HASH_MODEL}64, "
                f"with DIM from 2 to {MAX_HASH_DIM}"
            )
        return cls(dim, batch or 32)

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
