"""How sure it is that a match is what the query asks for.

A cosine means something else for each image, kind of query and model. So the score of a match is
compared with the scores that common nouns have with the same image, and a logistic model makes a
probability of it. `benchmarks/confidence.py` fits the model on photos and reports what it is worth.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.store import Vectors
from clipfleet.workers.query.nouns import NounBank

Doubles = NDArray[np.float64]

DEFAULT_THRESHOLD = 0.5  # from which on a match counts as one
NEAREST = 10  # nearest matches that tell whether the collection has anything like the query
SHARPNESS = 2.0  # factor of standard scores in a softmax over the nouns
TINY = 1e-12
BLOCK = 512  # matches that are compared with the nouns at once
SAME = 0.9  # cosine from which on two images become copies of each other
OF_COPIES = 12.0  # added to the logit at a cosine of 1


@dataclass(frozen=True)
class OfWords:
    """Weights of the logit for words: the match's evidence, the mean of the nearest, a constant."""

    own: float = 0.309
    nearest: float = 0.617
    constant: float = 1.186


@dataclass(frozen=True)
class OfImages:
    """Weights of the logit for images: cosines and likeness by nouns, of the match and the mean."""

    own: float = 4.349
    nearest: float = 18.838
    own_nouns: float = 1.712
    nearest_nouns: float = 3.488
    constant: float = -16.321


WORDS, IMAGES = OfWords(), OfImages()


@dataclass(frozen=True)
class Compared:
    """Images compared with the nouns.

    Attributes:
        rows: their embeddings, of unit length [n, dim].
        mean: the mean of each image's scores with the nouns [n].
        spread: their standard deviation [n].
        rival: the logarithm of the sum of the nouns' exponentials [n].
        roots: the square roots of the softmax over the nouns [n, nouns].
    """

    rows: Doubles
    mean: Doubles
    spread: Doubles
    rival: Doubles
    roots: Doubles


def compare(rows: Vectors, bank: NounBank) -> Compared:
    """Compare embeddings [n, dim] of any length with the nouns."""
    units = _units(rows)
    scores = (units.astype(np.float32) @ bank.rows.T).astype(np.float64)
    mean, spread = scores.mean(1), np.maximum(scores.std(1), TINY)
    sharp = SHARPNESS * (scores - mean[:, None]) / spread[:, None]
    top = sharp.max(1, keepdims=True)
    shares = np.exp(sharp - top)
    total = shares.sum(1, keepdims=True)
    rival = (top + np.log(total))[:, 0]
    return Compared(units, mean, spread, rival, np.sqrt(shares / total))


def words_evidence(query: Vectors, images: Compared) -> Doubles:
    """The logarithm of the query's odds against all nouns, for each image [n]."""
    scores = images.rows @ _units(query[None])[0]
    return np.asarray(SHARPNESS * (scores - images.mean) / images.spread - images.rival, np.float64)


def words_logits(evidence: Doubles, nearest: Doubles, weights: OfWords = WORDS) -> Doubles:
    """The logits of matches of a text.

    Args:
        evidence: of the matches [n], as `words_evidence` computes it.
        nearest: of the matches that are nearest to the query [k].
    """
    mean = float(nearest.mean()) if nearest.size else -1e3
    return weights.own * evidence + weights.nearest * mean + weights.constant


def image_evidence(query: Vectors, images: Compared, bank: NounBank) -> tuple[Doubles, Doubles]:
    """The cosine of a query image with each image [n], and how alike they are to the nouns [n]."""
    of_query = compare(query[None], bank)
    likeness = np.log(np.maximum(images.roots @ of_query.roots[0], 1e-6))
    return images.rows @ of_query.rows[0], likeness


def image_logits(
    evidence: tuple[Doubles, Doubles],
    nearest: tuple[Doubles, Doubles],
    weights: OfImages = IMAGES,
) -> Doubles:
    """The logits of matches of an image; arguments as of `words_logits`, of `image_evidence`."""
    cosine, nouns = evidence
    means = [float(part.mean()) if part.size else -1.0 for part in nearest]
    copies = OF_COPIES * np.clip((cosine - SAME) / (1 - SAME), 0, 1)
    own = weights.own * cosine + weights.own_nouns * nouns + copies
    rest = weights.nearest * means[0] + weights.nearest_nouns * means[1] + weights.constant
    return np.asarray(own + rest, np.float64)


def probability(logits: Doubles) -> Doubles:
    """The confidence, from 0 to 1."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -50, 50))), np.float64)


def label_confidences(embeddings: Vectors, labels: Vectors, bank: NounBank) -> Doubles:
    """How sure each label is for each image, whatever other images there are.

    Args:
        embeddings: of images [n, dim].
        labels: embeddings of texts [m, dim].
        bank: the nouns, embedded by the same model.

    Returns:
        Confidences from 0 to 1 [n, m].

    Example:
        label_confidences(images, embedder.embed_texts(["a photo of a dog"]), bank)
    """
    texts = _units(labels)
    blocks = [np.zeros((0, len(texts)))]
    for start in range(0, len(embeddings), BLOCK):
        images = compare(embeddings[start : start + BLOCK], bank)
        scores = (images.rows @ texts.T - images.mean[:, None]) / images.spread[:, None]
        evidence = SHARPNESS * scores - images.rival[:, None]
        blocks.append(probability((WORDS.own + WORDS.nearest) * evidence + WORDS.constant))
    return np.concatenate(blocks)


def _units(rows: Vectors) -> Doubles:
    wide = np.asarray(rows, np.float64)
    return np.asarray(
        wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), TINY), np.float64
    )
