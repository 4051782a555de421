"""Combines the weighted terms of a query into one vector.

Rocchio ("Relevance feedback in information retrieval", 1971) moved a query towards relevant
documents and away from others by a weighted sum of vectors. CLIP embeddings of words and of images
can be combined in the same way (Couairon et al., "Embedding arithmetic of multimodal queries for
image retrieval", 2022).

For every metric, images are then ordered by the weighted sum of their scores for each term:
cosines, dot products or, for the euclidean metric, squared distances.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.collection import Metric
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.store import Vectors

Doubles = NDArray[np.float64]
MIN_RELATIVE_LENGTH = 1e-6  # to the terms' weights; below it, rounding decides the sum's direction


def combine(weights: Sequence[float], rows: Sequence[Vectors], metric: Metric) -> Vectors:
    """Combine the embeddings of a query's terms.

    For `cosine`, the weighted sum of unit vectors, scaled to unit length. For `dot`, the weighted
    sum. For `euclidean`, the weighted mean, which minimises the weighted squared distances.

    Args:
        weights: one for each row.
        rows: embeddings [dim].

    Raises:
        InvalidRequest: the combination has no direction, or no minimum.
    """
    if len(rows) == 1 and weights[0] == 1:
        return rows[0]
    factors = np.asarray(weights, np.float64)
    vectors = np.stack(rows).astype(np.float64)
    if metric == "euclidean":
        return _mean(factors, vectors)
    if metric == "cosine":
        vectors = _units(vectors)
    total = factors @ vectors
    length = float(np.linalg.norm(total))
    if length <= MIN_RELATIVE_LENGTH * float(np.abs(factors) @ np.linalg.norm(vectors, axis=1)):
        raise InvalidRequest("the terms cancel each other out: their sum has no direction")
    return np.asarray(total / length if metric == "cosine" else total, np.float32)


def _mean(factors: Doubles, vectors: Doubles) -> Vectors:
    if factors.sum() <= MIN_RELATIVE_LENGTH * np.abs(factors).sum():
        raise InvalidRequest(
            "with the euclidean metric the weights of the terms must add up to more than 0: "
            "no image is farthest from a point"
        )
    return np.asarray(factors @ vectors / factors.sum(), np.float32)


def _units(vectors: Doubles) -> Doubles:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not lengths.all():
        raise InvalidRequest("a term is a vector of zeros, which has no direction")
    return np.asarray(vectors / lengths, np.float64)
