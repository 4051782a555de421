"""The confidence of the matches of one query with several terms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clipfleet.common.identity import primary_key
from clipfleet.common.queue.messages import Search, Term
from clipfleet.common.store import Match, Vectors
from clipfleet.workers.query.confidence import (
    BLOCK,
    DEFAULT_THRESHOLD,
    Compared,
    Doubles,
    compare,
    image_evidence,
    image_logits,
    probability,
    words_evidence,
    words_logits,
)
from clipfleet.workers.query.nouns import NounBank
from clipfleet.workers.query.ranking import RankedMatch, Ranking

ALL_AWAY = "no term of the query has a positive weight"


@dataclass(frozen=True)
class Sure:
    """The page of a query with confidences.

    Attributes:
        page: its matches.
        no_match: whether none of the nearest images is confidently a match; None: not known.
        reason: why there is no confidence; "": there is.
    """

    page: list[RankedMatch]
    no_match: bool | None = None
    reason: str = ""


def confidences(
    terms: Sequence[tuple[Term, Vectors]], ranking: Ranking, search: Search, bank: NounBank
) -> Sure:
    """Give the matches of a ranking their confidence, and leave out those below `min_confidence`.

    Each term with a positive weight has its own logit for a match. The confidence is that of their
    weighted mean. The images that the query names count for nothing but themselves.

    Args:
        terms: the terms with their embeddings.
        ranking: the ranking; its matches have embeddings.
    """
    page = ranking.page()
    towards = [(term, row) for term, row in terms if term.weight > 0]
    if not towards:
        return Sure(page, reason=ALL_AWAY)
    named = {
        primary_key(search.namespace, str(term.value)) for term, _ in terms if term.kind == "id"
    }
    others = [match for match in ranking.nearest if match.record.pk not in named]
    near = compare(_rows(others, bank), bank)
    sure_near = _of(towards, near, near, bank)
    result = []
    for start in range(0, len(page), BLOCK):
        block = page[start : start + BLOCK]
        images = compare(_rows([ranked.match for ranked in block], bank), bank)
        for ranked, value in zip(block, _of(towards, images, near, bank), strict=True):
            if search.min_confidence is None or value >= search.min_confidence:
                result.append(replace(ranked, confidence=round(float(value), 4)))
    return Sure(result, not bool((sure_near >= DEFAULT_THRESHOLD).any()))


def _rows(matches: Sequence[Match], bank: NounBank) -> Vectors:
    if not matches:
        return np.zeros((0, bank.rows.shape[1]), np.float32)
    return np.stack([match.record.embedding for match in matches])


def _of(
    terms: Sequence[tuple[Term, Vectors]], images: Compared, near: Compared, bank: NounBank
) -> Doubles:
    logits = np.zeros(len(images.rows))
    total = sum(term.weight for term, _ in terms)
    for term, row in terms:
        if term.kind == "text" or (term.kind == "vector" and _is_of_words(row, near, bank)):
            logit = words_logits(words_evidence(row, images), words_evidence(row, near))
        else:
            logit = image_logits(image_evidence(row, images, bank), image_evidence(row, near, bank))
        logits += term.weight / total * logit
    return probability(logits)


def _is_of_words(row: Vectors, near: Compared, bank: NounBank) -> bool:
    """Whether a vector is as near to the nouns as nouns are, and not as images are."""
    if not len(near.rows):
        return False
    center = bank.rows.mean(0)
    mine = float(row @ center) / max(float(np.linalg.norm(row)), 1e-12)
    of_nouns, of_images = float(center @ center), float(near.mean.mean())
    return abs(mine - of_nouns) < abs(mine - of_images)
