"""Principal components of embeddings that come batch by batch, in bounded memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.store import Vectors

Numbers = NDArray[np.float64]

MAX_DIM = 2_048  # longer embeddings are projected at random to so many numbers first
SMALLEST = 1e-12  # a variance below this share of the largest one is rounding


@dataclass(frozen=True)
class Reduction:
    """Maps embeddings to their first principal components.

    Attributes:
        projection: applied first, float32 [dim, at most MAX_DIM]; None: nothing.
        centre: the mean of the embeddings.
        axes: the components, float32 [dim or MAX_DIM, k], those of the largest variance first.
    """

    projection: Vectors | None
    centre: Vectors
    axes: Vectors

    def apply(self, rows: Vectors) -> Vectors:
        """The components of embeddings, float32 [n, k]."""
        shorter = rows if self.projection is None else rows @ self.projection
        return np.asarray((shorter - self.centre) @ self.axes, np.float32)


class StreamedPca:
    """Collects the covariance of embeddings, and finds its principal components.

    The result depends on the order of the batches by rounding alone. It takes dim x dim numbers of
    memory, whatever the number of embeddings.

    Args:
        dim: the length of an embedding.
        seed: decides the random projection of embeddings longer than MAX_DIM.

    Example:
        pca = StreamedPca(512)
        for batch in batches:
            pca.add(batch)
        points = pca.reduction(2).apply(embeddings)
    """

    def __init__(self, dim: int, seed: int = 0) -> None:
        self._projection: Vectors | None = None
        if dim > MAX_DIM:  # Johnson and Lindenstrauss: distances stay, nearly
            drawn = np.random.default_rng(seed).standard_normal((dim, MAX_DIM), np.float32)
            self._projection = drawn / np.float32(np.sqrt(MAX_DIM))
            dim = MAX_DIM
        self.count = 0
        self._origin: Numbers | None = None  # near the mean, so that squares stay small
        self._sum = np.zeros(dim)
        self._squares = np.zeros((dim, dim))

    def add(self, rows: Vectors) -> None:
        """Take a batch of embeddings, float32 [n, dim]."""
        if not len(rows):
            return
        shorter = rows if self._projection is None else rows @ self._projection
        values = shorter.astype(np.float64)
        if self._origin is None:
            self._origin = values.mean(0)
        values -= self._origin
        self.count += len(rows)
        self._sum += values.sum(0)
        self._squares += values.T @ values

    def reduction(self, components: int) -> Reduction:
        """The first principal components of what was added.

        Axes without variance are zero, as are those beyond the length of an embedding: all
        embeddings are at 0 of them. The largest number of each axis is positive.

        Args:
            components: how many.
        """
        dim, count = len(self._sum), max(1, self.count)
        shift = self._sum / count
        covariance = self._squares / count - np.outer(shift, shift)
        variances, vectors = np.linalg.eigh(covariance)
        axes = np.zeros((dim, components))
        largest = max(float(variances[-1]), 0.0)
        floor = SMALLEST * max(largest, float(np.trace(self._squares)) / count)
        for place in range(min(components, dim)):
            if variances[-1 - place] > floor:
                axis = vectors[:, -1 - place]
                axes[:, place] = axis * np.sign(axis[np.argmax(np.abs(axis))])
        origin = self._origin if self._origin is not None else np.zeros(dim)
        return Reduction(
            self._projection, (origin + shift).astype(np.float32), axes.astype(np.float32)
        )


def of_length_one(rows: Vectors) -> Vectors:
    """Embeddings divided by their lengths; those of length 0 stay as they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def in_unit_square(points: Vectors) -> Vectors:
    """Points moved and scaled, by the same factor in both directions, to [0, 1] x [0, 1].

    Points that are all the same are in the middle.
    """
    if not len(points):
        return points
    points = np.nan_to_num(points.astype(np.float64), posinf=0, neginf=0)
    low, high = points.min(0), points.max(0)
    extent = float((high - low).max())
    middle = (low + high) / 2
    scale = 1 / extent if extent > 0 else 0.0
    return np.asarray(np.clip((points - middle) * scale + 0.5, 0, 1), np.float32)
