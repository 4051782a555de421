"""The embedder port, and `HashEmbedder`, which needs no model."""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.preprocess import Preprocess

Embeddings = NDArray[np.float32]  # [n, dim], rows of unit length
HASH_MODEL = "hash:"  # CLIPFLEET_MODEL=hash:64
MAX_HASH_DIM = 4096


class Embedder(Protocol):
    """The port of a model.

    Implementations: `ClipEmbedder` in `workers/embedding/clip.py`, and `HashEmbedder`. The
    embedding of an item does not depend on the other items of a call.
    """

    @property
    def dim(self) -> int:
        """The length of an embedding.

        It is the same for images and texts, and does not change while the process runs. A
        collection
        stores it as `Collection.dim`.
        """
        ...

    @property
    def device(self) -> str:
        """The device of the model.

        Returns:
            A name of torch, such as "cpu" or "cuda:0"; "none" without a model.
        """
        ...

    @property
    def preprocess(self) -> Preprocess:
        """How images are resized and cropped for the model.

        Gateways prepare query images with it, so that they need no model: a worker announces it in
        `WorkerCard.preprocess`.
        """
        ...

    @property
    def batch(self) -> int:
        """The number of images in one call that uses the device well.

        A call may have any number of images: this is the number for which the caller should wait,
        if it
        can.
        """
        ...

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Embed images.

        Args:
            pixels: uint8 [n, height, width, 3], rows from `preprocess.apply`.

        Returns:
            float32 [n, dim], each row of unit length; row i is for image i.

        Raises:
            Exception: the model fails on an image. The caller embeds the images one by one to find
                it.
            BrokenDevice: in a worker, the device is broken for good.
        """
        ...

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts.

        Args:
            texts: n texts of any length. A model cuts a text that is longer than its context.

        Returns:
            float32 [n, dim], each row of unit length; row i is for text i.

        Raises:
            BrokenDevice: in a worker, the device is broken for good.
        """
        ...

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is longer than the model's context, so that its end does not count."""
        ...


class HashEmbedder:
    """Embeddings from a hash of the input: equal inputs get equal rows, others unrelated rows.

    For tests, and for trying a service without a model: `CLIPFLEET_MODEL=hash:64`. A search finds
    the same image or the same text again, and nothing similar.

    Args:
        dim: the length of an embedding.
        batch: the number of images in one call.
    """

    device = "none"
    preprocess = Preprocess(shortest=8, height=8, width=8)

    def __init__(self, dim: int = 16, batch: int = 32) -> None:
        self.dim, self.batch = dim, batch

    @classmethod
    def named(cls, model: str, batch: int = 0) -> "HashEmbedder":
        """The embedder for the model name `hash:DIM`.

        Args:
            batch: the number of images in one call; 0: the default.

        Raises:
            StartupError: the name has another form.
        """
        match = re.fullmatch(rf"{HASH_MODEL}([0-9]{{1,4}})", model)
        dim = int(match[1]) if match else 0
        if not 2 <= dim <= MAX_HASH_DIM:
            raise StartupError(
                f"CLIPFLEET_MODEL={model}: write {HASH_MODEL}DIM, as in {HASH_MODEL}64, "
                f"with DIM from 2 to {MAX_HASH_DIM}"
            )
        return cls(dim, batch or 32)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._rows([image.tobytes() for image in pixels])

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._rows([text.encode() for text in texts])

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        """No text is too long for a hash."""
        return [False] * len(texts)

    def _rows(self, items: Sequence[bytes]) -> Embeddings:
        rows = np.empty((len(items), self.dim), np.float32)
        for row, item in zip(rows, items, strict=True):
            seed = int.from_bytes(hashlib.blake2b(item, digest_size=8).digest(), "big")
            row[:] = np.random.default_rng(seed).standard_normal(self.dim)
            row /= np.linalg.norm(row)
        return rows
