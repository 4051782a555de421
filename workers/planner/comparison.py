"""Compares the answers of two generations, with stored images as queries."""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from clipfleet.common.collection import Collection
from clipfleet.common.ledger.migrations import Comparison, Example
from clipfleet.common.store import Record, Store

QUERIES = 100
PER_PLACE = 5  # neighbouring keys, which are hashes, so that a few reads give a random sample
NEAREST = 10
EXAMPLES, EXAMPLE_NEAREST = 8, 5  # queries that are shown, and answers of each


def compare(
    store: Store, old: Collection, new: Collection, now: float, queries: int = QUERIES
) -> Comparison | None:
    """Compare the ten nearest images of sampled images.

    Args:
        store: has both generations.
        old: the generation with the model before.
        new: the other one.
        now: unix seconds.
        queries: the number of queries.

    Returns:
        The comparison; None when the generations have no image in common.

    Raises:
        CollectionGone: the store does not have one of the generations.
        StoreUnavailable: the store is away.
    """
    pairs = sample(store, old, new, queries)
    if not pairs:
        return None
    overlaps: list[float] = []
    precisions: tuple[list[float], list[float]] = ([], [])
    examples: list[Example] = []
    for nearest_old, nearest_new, record in nearest(store, old, new, pairs):
        ids = [{row.id for row in rows} for rows in (nearest_old, nearest_new)]
        largest = max(map(len, ids))
        if not largest:
            continue
        overlaps.append(len(ids[0] & ids[1]) / largest)
        if len(examples) < EXAMPLES:
            examples.append(_example(record, nearest_old, nearest_new))
        if record.label:
            for rows, shares in zip((nearest_old, nearest_new), precisions, strict=True):
                alike = sum(row.label == record.label for row in rows)
                shares.append(alike / len(rows) if rows else 0.0)
    if not overlaps:  # each image is the only one of its namespace
        return Comparison(queries=0, overlap=1.0, at=now)
    labelled = len(precisions[0])
    return Comparison(
        queries=len(overlaps),
        overlap=_mean(overlaps),
        labelled=labelled,
        precision_old=_mean(precisions[0]) if labelled else None,
        precision_new=_mean(precisions[1]) if labelled else None,
        at=now,
        examples=tuple(examples),
    )


def _example(query: Record, old: Sequence[Record], new: Sequence[Record]) -> Example:
    shown = [tuple(row.id for row in rows[:EXAMPLE_NEAREST]) for rows in (old, new)]
    return Example(id=query.id, namespace=query.namespace, old=shown[0], new=shown[1])


def sample(
    store: Store, old: Collection, new: Collection, size: int
) -> list[tuple[Record, Record]]:
    """Images that both generations have, as each has them, with their embeddings."""
    chosen: dict[str, Record] = {}
    numbers = random.Random(new.generation)
    for _ in range(2 * size // PER_PLACE):
        place = f"{numbers.getrandbits(128):032x}"
        rows = store.scan(old, after=place, limit=PER_PLACE, include_values=True)
        chosen |= {row.pk: row for row in rows}
        if len(chosen) >= size:
            break
    if len(chosen) < size:  # a small collection
        rows = store.scan(old, limit=size, include_values=True)
        chosen |= {row.pk: row for row in rows}
    copies = store.fetch(new, list(chosen)[:size])
    return [(chosen[pk], copy) for pk, copy in copies.items()]


def nearest(
    store: Store,
    old: Collection,
    new: Collection,
    pairs: Sequence[tuple[Record, Record]],
) -> list[tuple[list[Record], list[Record], Record]]:
    """The nearest images of each pair in both generations, without itself, and the image."""
    by_namespace = defaultdict[str, list[tuple[Record, Record]]](list)
    for pair in pairs:
        by_namespace[pair[0].namespace].append(pair)
    rankings = []
    for namespace, alike in by_namespace.items():
        for start in range(0, len(alike), PER_PLACE):  # so that other searches come in between
            part = alike[start : start + PER_PLACE]
            answers = [
                store.search(
                    collection,
                    np.stack([pair[side].embedding for pair in part]),
                    namespace=namespace,
                    top_k=NEAREST + 1,
                    brief=True,
                    fresh=False,
                )
                for side, collection in enumerate((old, new))
            ]
            for pair, *both in zip(part, *answers, strict=True):
                rows = [
                    [match.record for match in matches if match.record.id != pair[0].id][:NEAREST]
                    for matches in both
                ]
                rankings.append((rows[0], rows[1], pair[0]))
    return rankings


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)
