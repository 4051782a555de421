"""One vector from the weighted terms of a query.

Rocchio ("Relevance feedback in information retrieval", 1971) moved a query towards what was liked
and away from what was not by a weighted sum of vectors. Embeddings of CLIP are mixed in the same
way, words with images, too (Couairon et al., "Embedding arithmetic of multimodal queries for image
retrieval", 2022).

Whatever the metric, images then come in the order of the weighted sum of what each term alone
would give them: cosines, dot products or, for the euclidean metric, squares of distances.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.collection import Metric
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.store import Vectors

Doubles = NDArray[np.float64]
LITTLE = 1e-6  # of what the terms weigh: below it, rounding says where the sum points


def combine(weights: Sequence[float], rows: Sequence[Vectors], metric: Metric) -> Vectors:
    """The sum of [dim] rows. InvalidRequest where they leave nothing to look for.

    cosine: terms of unit length, added, of unit length again; dot: added as they are; euclidean:
    their weighted mean, which the weighted squares of distances are least around.
    """
    if len(rows) == 1 and weights[0] == 1:
        return rows[0]
    by = np.asarray(weights, np.float64)
    each = np.stack(rows).astype(np.float64)
    if metric == "euclidean":
        return _mean(by, each)
    if metric == "cosine":
        each = _units(each)
    total = by @ each
    length = float(np.linalg.norm(total))
    if length <= LITTLE * float(np.abs(by) @ np.linalg.norm(each, axis=1)):
        raise InvalidRequest("the terms cancel each other out: their sum points nowhere")
    return np.asarray(total / length if metric == "cosine" else total, np.float32)


def _mean(by: Doubles, each: Doubles) -> Vectors:
    if by.sum() <= LITTLE * np.abs(by).sum():
        raise InvalidRequest(
            "by the euclidean metric the weights of the terms must add up to more than 0: "
            "nothing is farthest from a point"
        )
    return np.asarray(by @ each / by.sum(), np.float32)


def _units(each: Doubles) -> Doubles:
    lengths = np.linalg.norm(each, axis=1, keepdims=True)
    if not lengths.all():
        raise InvalidRequest("a term is a vector of zeros, which has no direction")
    return np.asarray(each / lengths, np.float64)
