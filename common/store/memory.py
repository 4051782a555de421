"""The store in memory: exact search, the reference that other stores are tested against."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clipfleet.common.collection import Collection
from clipfleet.common.store import (
    CollectionGone,
    Fingerprint,
    Match,
    Record,
    Vectors,
    kept_metadata,
    require_distinct,
)
from clipfleet.common.store.filters import Filter, matches
from clipfleet.common.store.rows import bare


class MemoryStore:
    """A store in the memory of one process, for tests. Searches compare with every record."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Record]] = {}
        self._held: dict[str, Collection] = {}
        self._marks: set[str] = set()

    def create(self, collection: Collection) -> None:
        self._rows.setdefault(collection.generation, {})
        self._held[collection.generation] = collection

    def drop(self, collection: Collection) -> None:
        self._rows.pop(collection.generation, None)
        self._held.pop(collection.generation, None)

    def count(
        self, collection: Collection, namespace: str | None = None, where: Filter | None = None
    ) -> int:
        return len(self._matching(collection, namespace, where))

    def fingerprints(self, collection: Collection, keys: Sequence[str]) -> dict[str, Fingerprint]:
        records = self.fetch(collection, keys)
        return {
            pk: Fingerprint(row.content_hash, row.job_id, row.indexed_at)
            for pk, row in records.items()
        }

    def present(self, collection: Collection, keys: Sequence[str]) -> set[str]:
        return set(self.fetch(collection, keys))

    def fetch(
        self, collection: Collection, keys: Sequence[str], *, include_values: bool = True
    ) -> dict[str, Record]:
        rows = self._of(collection)
        records = {pk: rows[pk] for pk in keys if pk in rows}
        return records if include_values else {pk: _bare(row) for pk, row in records.items()}

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        require_distinct(records)
        if any(record.embedding.shape != (collection.dim,) for record in records):
            raise ValueError("an embedding has the wrong length")
        rows = self._of(collection)
        for record in records:
            rows[record.pk] = replace(record, metadata=kept_metadata(record.metadata))

    def update(self, collection: Collection, records: Sequence[Record]) -> None:
        require_distinct(records)
        stored = self._of(collection)
        known = [record for record in records if record.pk in stored]
        self.upsert(
            collection,
            [replace(record, embedding=stored[record.pk].embedding) for record in known],
        )

    def delete(self, collection: Collection, keys: Sequence[str]) -> None:
        rows = self._of(collection)
        for pk in keys:
            rows.pop(pk, None)

    def search(
        self,
        collection: Collection,
        vectors: Vectors,
        *,
        namespace: str,
        top_k: int,
        offset: int = 0,
        where: Filter | None = None,
        include_values: bool = False,
        brief: bool = False,  # noqa: ARG002
        fresh: bool = True,  # noqa: ARG002  (memory is always fresh)
    ) -> list[list[Match]]:
        rows = self._matching(collection, namespace, where)
        if not rows:
            return [[] for _ in vectors]
        scores = _scores(collection, vectors, np.stack([row.embedding for row in rows]))
        nearest_first = scores if collection.metric == "euclidean" else -scores
        order = np.argsort(nearest_first, axis=1, kind="stable")[:, offset : offset + top_k]
        shown = rows if include_values else [_bare(row) for row in rows]
        return [
            [Match(shown[column], float(scores[i, column])) for column in columns]
            for i, columns in enumerate(order)
        ]

    def scan(
        self,
        collection: Collection,
        *,
        namespace: str | None = None,
        where: Filter | None = None,
        after: str = "",
        limit: int,
        include_values: bool = False,
        only_ids: bool = False,
    ) -> list[Record]:
        matching = self._matching(collection, namespace, where)
        rest = sorted((row for row in matching if row.pk > after), key=lambda row: row.pk)[:limit]
        if only_ids:
            return [bare(vars(row)) for row in rest]
        return rest if include_values else [_bare(row) for row in rest]

    def missing(self, known: Sequence[Collection]) -> list[Collection]:
        return [collection for collection in known if collection.generation not in self._held]

    def others(self, known: Sequence[Collection]) -> list[Collection]:
        generations = {collection.generation for collection in known}
        return [
            collection for key, collection in list(self._held.items()) if key not in generations
        ]

    def ping(self) -> None:
        return None

    def version(self) -> str:
        return "memory"

    def has_mark(self, mark: str) -> bool:
        return mark in self._marks

    def set_mark(self, mark: str) -> None:
        self._marks.add(mark)

    def _matching(
        self, collection: Collection, namespace: str | None, where: Filter | None
    ) -> list[Record]:
        return [
            row
            for row in list(self._of(collection).values())
            if (namespace is None or row.namespace == namespace)
            and (where is None or matches(where, row.values()))
        ]

    def _of(self, collection: Collection) -> dict[str, Record]:
        if collection.generation not in self._rows:
            raise CollectionGone(f"collection {collection.name!r} no longer exists")
        return self._rows[collection.generation]


def _scores(collection: Collection, vectors: Vectors, rows: Vectors) -> Vectors:
    """The scores [n, m] of vectors [n, dim] and rows [m, dim]."""
    if collection.metric == "euclidean":
        distances = np.linalg.norm(vectors[:, None, :] - rows[None, :, :], axis=2)
        return np.asarray(distances, np.float32)
    if collection.metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.matmul(vectors, rows.T), np.float32)


def _bare(record: Record) -> Record:
    return replace(record, embedding=np.empty(0, np.float32))
