"""Makes searches of milvus-lite cheap. They find what they found before, and what they missed.

milvus-lite 3.2 looks at every row of a collection in Python for each search, to leave out rows that
were replaced or deleted. It reads the embedding of every match, whether it is asked for or not, and
makes Python numbers of all embeddings that are not in a data file yet. At 10,000 rows that was half
of the processor time of a search. Here all of this is kept between searches, and brought up to date
with what was written since.

A walk through an HNSW graph ends after `ef` steps, however few rows on its way pass a filter: of 20
rows that passed among 40,000 it found 0 to 2, with `ef` 64. Here up to EXACT_ROWS rows that pass
are compared one by one. 9,000 embeddings of 128 numbers take 2 ms.

A search also waited while files of its collection were merged, for 0.1 to 0.7 s. Here it reads the
files as they were before. It still waits for a flush, so that no row is missed on its way from
memory to a file; milvus-lite itself can miss one when a merge is under way as well.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from milvus_lite.engine import collection
from milvus_lite.engine.collection import Collection
from milvus_lite.search.executor_indexed import execute_search_with_index
from milvus_lite.search.filter import evaluate_mask
from milvus_lite.search.indexed_filter import evaluate_segment_filter
from milvus_lite.storage.memtable import MemTable
from numpy.typing import NDArray

from clipfleet.embedded.bulk_writes import EXACT_ROWS, ExactIndex

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Numbers = NDArray[np.float32]
INTERNAL = {"_seq", "_partition"}  # columns that are no fields of a row


def make_searches_cheap(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the search of milvus-lite in this process, before its server starts.

    Args:
        replace: sets an attribute of an object.
    """
    for name in ("apply_insert", "apply_delete"):
        replace(MemTable, name, _noted(getattr(MemTable, name)))
    replace(collection, "execute_search_with_index", search)
    replace(Collection, "_trigger_flush", _gated_flush(Collection._trigger_flush))
    replace(Collection, "_refresh_segment_cache", _published(Collection._refresh_segment_cache))
    replace(Collection, "_read_snapshot", _read_published)


def _gate(owner: Any) -> Any:
    """The lock of a collection that is held while rows go from memory to a file."""
    return owner.__dict__.setdefault("gate", threading.RLock())


def _gated_flush(flush: Callable[[Any], None]) -> Callable[[Any], None]:
    def gated(owner: Any) -> None:
        with owner._maintenance_lock, _gate(owner):  # the first one is held during a merge
            flush(owner)

    return gated


def _published(refresh: Callable[[Any], None]) -> Callable[[Any], None]:
    """The function, the last step of every flush and merge, after which its result can be read."""

    def published(owner: Any) -> None:
        refresh(owner)
        segments, deleted = tuple(owner._segment_cache.values()), owner._delta_index.frozen_copy()
        owner.__dict__["published"] = (segments, deleted)

    return published


def _read_published(owner: Any) -> tuple[tuple[Any, ...], Any]:
    with _gate(owner):
        segments, published = owner.__dict__["published"]
        deleted = published.frozen_copy()
        deleted.memtable = owner._memtable  # for `search`: of the same moment
    return segments, deleted


def _noted(apply: Callable[..., None]) -> Callable[..., None]:
    """The function, which also appends its batch to the memtable's list of changes."""

    def noted(memtable: Any, batch: pa.RecordBatch) -> None:
        with memtable._lock:
            apply(memtable, batch)
            memtable.__dict__.setdefault("changes", []).append(batch)

    return noted


def search(
    query_vectors: Numbers,
    segments: Iterable[Any],
    memtable: Any,
    delta_index: Any,
    top_k: int,
    metric_type: str,
    pk_field: str,
    vector_field: str,
    partition_names: Sequence[str] | None = None,
    compiled_filter: Any = None,
    output_fields: Sequence[str] | None = None,
    indexed_filter_plan: Any = None,
    project_record_fn: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    search_params: dict[str, Any] | None = None,
) -> list[list[dict[str, Any]]]:
    """Stands in for `execute_search_with_index`, with its arguments and its results."""
    segments = tuple(segments)
    memtable = getattr(delta_index, "memtable", memtable)
    if (
        partition_names
        or project_record_fn is None
        or not len(query_vectors)
        or any(segment.vector_data(vector_field)[1] is not None for segment in segments)
    ):  # clipfleet does not use these
        return execute_search_with_index(  # type: ignore[no-any-return]
            query_vectors, segments, memtable, delta_index, top_k, metric_type, pk_field,
            vector_field, partition_names, compiled_filter, output_fields, indexed_filter_plan,
            project_record_fn, search_params,
        )  # fmt: skip
    live = live_rows(memtable, pk_field, vector_field, metric_type)
    hits: list[tuple[Rows, Numbers]] = []
    tables: list[pa.Table] = []
    with live.lock:
        masks, batches = live.update(memtable, segments, delta_index)
        mask = live.mask
        if compiled_filter is not None and batches:
            mask = mask & evaluate_mask(compiled_filter, pa.Table.from_batches(batches))
        recent = live.search(query_vectors, top_k, mask)
    for segment, mask in zip(segments, masks, strict=True):
        if compiled_filter is not None:
            mask = mask & evaluate_segment_filter(segment, compiled_filter, indexed_filter_plan)
        if not mask.any():
            continue
        index = segment.indexes.get(vector_field)
        if index is None:
            index = ExactIndex.build(segment.vector_data(vector_field)[0], metric_type)
        valid = None if mask.all() else mask
        places = np.flatnonzero(mask)
        if len(places) <= EXACT_ROWS and not isinstance(index, ExactIndex):
            vectors = segment.vector_data(vector_field)[0][places]
            few, far = ExactIndex.build(vectors, metric_type).search(query_vectors, top_k)
            hits.append((np.where(few < 0, -1, places[few]), far))
        else:
            hits.append(index.search(query_vectors, top_k, valid_mask=valid, params=search_params))
        tables.append(segment.table)
    if recent is not None:
        hits.append(recent)
        tables.append(pa.Table.from_batches(batches))
    if not hits:
        return [[] for _ in query_vectors]
    wants_vectors = output_fields is None or bool({"*", vector_field} & set(output_fields))
    unwanted = INTERNAL if wants_vectors else INTERNAL | {vector_field}
    return _nearest(hits, tables, top_k, pk_field, unwanted, project_record_fn)


def _nearest(
    hits: Sequence[tuple[Rows, Numbers]],
    tables: Sequence[pa.Table],
    top_k: int,
    pk_field: str,
    unwanted: set[str],
    project: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[list[dict[str, Any]]]:
    """The nearest rows of all tables for each query, with their fields.

    Args:
        hits: for each table, rows and distances [queries, n]; row -1 fills up.
        unwanted: columns that are not read.
    """
    rows = np.concatenate([ids for ids, _ in hits], axis=1)
    distances = np.concatenate([far for _, far in hits], axis=1)
    sources = np.repeat(np.arange(len(hits)), [ids.shape[1] for ids, _ in hits])
    sources = np.broadcast_to(sources, rows.shape)
    order = np.lexsort((rows, sources, np.where(rows < 0, np.inf, distances)), axis=1)[:, :top_k]
    rows, distances, sources = (
        np.take_along_axis(values, order, axis=1) for values in (rows, distances, sources)
    )
    records: dict[tuple[int, int], tuple[Any, dict[str, Any]]] = {}
    for source, table in enumerate(tables):
        winners = np.unique(rows[(sources == source) & (rows >= 0)])
        names = [name for name in table.schema.names if name not in unwanted]
        columns = table.select(names).take(winners).to_pydict()
        for n, row in enumerate(winners.tolist()):
            record = {name: columns[name][n] for name in names}
            records[source, row] = record[pk_field], project(record)
    answers: list[list[dict[str, Any]]] = []
    for query in range(len(rows)):
        places = zip(sources[query].tolist(), rows[query].tolist(), strict=True)
        nearest = zip(places, distances[query].tolist(), strict=True)
        answers.append(
            [
                {"id": records[place][0], "distance": far, "entity": dict(records[place][1])}
                for place, far in nearest
                if place in records
            ]
        )
    return answers


@dataclass
class _Live:
    """Which rows of a collection are its current ones: not replaced, and not deleted.

    It belongs to a memtable, which holds the rows that are not in a data file yet. It does not
    refer to the memtable, so that both go when a flush is over. `lock` protects all of it.

    Attributes:
        index: the embeddings of the memtable, one for each row of its batches.
        mask: which of these rows are current.
    """

    pk_field: str
    vector_field: str
    metric: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    index: ExactIndex | None = None
    mask: Mask = field(default_factory=lambda: np.zeros(0, np.bool_))
    _segments: tuple[Any, ...] = ()
    _deleted: dict[Any, int] = field(default_factory=dict)
    _masks: list[Mask] = field(default_factory=list)
    _seen: int = 0  # changes of the memtable
    _begins: list[int] = field(default_factory=lambda: [0])  # of batches, in `mask`
    _places: dict[Any, int] = field(default_factory=dict)  # current rows in `mask`, by key

    def update(
        self, memtable: Any, segments: tuple[Any, ...], delta_index: Any
    ) -> tuple[list[Mask], list[pa.RecordBatch]]:
        """Take in what was written since the last call.

        Returns:
            (the current rows of each segment, the batches of the memtable).
        """
        same = len(segments) == len(self._segments) and all(map(_is, segments, self._segments))
        same &= self._deleted == delta_index._map
        with memtable._lock:
            batches = list(memtable._insert_batches)
            changes = list(memtable.__dict__.get("changes", ())[self._seen :])
            current = dict.fromkeys(
                key for batch in changes for key in batch.column(self.pk_field).to_pylist()
            )
            for key in current:
                current[key] = memtable._pk_index.get(key)
            every = () if same else (*memtable._pk_index, *memtable._delete_index)
        self._seen += len(changes)
        self._add(batches[len(self._begins) - 1 :])
        for key, place in current.items():
            if key in self._places:
                self.mask[self._places.pop(key)] = False
            if place is not None:
                at = self._places[key] = self._begins[place[0]] + place[1]
                self.mask[at] = True
        if not same:
            self._segments, self._deleted = segments, delta_index._map
            self._masks = _current_rows(segments, delta_index)
            self._shadow(every)
        elif current:
            self._masks = [mask.copy() for mask in self._masks]  # a search may use the old ones
            self._shadow(current)
        return self._masks, batches

    def _shadow(self, keys: Iterable[Any]) -> None:
        """Rows of segments are older than those of the memtable."""
        for key in keys:
            for segment, mask in zip(self._segments, self._masks, strict=True):
                row = segment.pk_to_row.get(key)
                if row is not None:
                    mask[row] = False

    def _add(self, batches: Sequence[pa.RecordBatch]) -> None:
        for batch in batches:
            column = batch.column(self.vector_field)
            numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            vectors = numbers.reshape(batch.num_rows, -1)
            if self.index is None:
                self.index = ExactIndex.build(vectors, self.metric)
            else:
                self.index.add(vectors)
            self._begins.append(self._begins[-1] + batch.num_rows)
        if batches:
            self.mask = np.append(self.mask, np.zeros(self._begins[-1] - len(self.mask), np.bool_))

    def search(self, queries: Numbers, top_k: int, mask: Mask) -> tuple[Rows, Numbers] | None:
        """The nearest rows of the memtable; None when none passes `mask`."""
        if self.index is None or not mask.any():
            return None
        return self.index.search(queries, top_k, valid_mask=None if mask.all() else mask)


def _is(segment: Any, other: Any) -> bool:
    return segment is other


def live_rows(memtable: Any, pk_field: str, vector_field: str, metric: str) -> _Live:
    """Which rows are current ones, as known since the last search of this memtable."""
    with memtable._lock:
        live: _Live = memtable.__dict__.setdefault(
            f"live {vector_field} {metric}", _Live(pk_field, vector_field, metric)
        )
    return live


def _current_rows(segments: Sequence[Any], delta_index: Any) -> list[Mask]:
    """The rows of each segment that are not replaced by one of another, and not deleted."""
    newest: dict[Any, tuple[int, int, int]] = {}
    for n, segment in enumerate(segments):
        for row, (key, seq) in enumerate(zip(segment.pks, segment.seqs.tolist(), strict=True)):
            known = newest.get(key)
            if known is None or seq > known[0]:
                newest[key] = (seq, n, row)
    masks = [np.zeros(segment.num_rows, np.bool_) for segment in segments]
    for key, (seq, n, row) in newest.items():
        masks[n][row] = not delta_index.is_deleted(key, seq)
    return masks
