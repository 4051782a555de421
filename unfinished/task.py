"""The task that looks for the duplicates of a collection.

Each chunk writes its embeddings, with what decides which image to keep, into a blob. The finishing
step reads the blobs into a temporary file, in the order of the images to keep, and groups them; see
`near.py`. Its memory is some hundred bytes an image; the file has 4 bytes for each number of an
embedding. The time grows with the square of the images, less where there are many duplicates.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.duplicates import (
    MAX_BYTES,
    Group,
    Member,
    Summary,
    numbered,
    read_apart,
    write_result,
)
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.duplicates import Keep, Tier
from clipfleet.common.identity import BYTES_DIGITS
from clipfleet.common.ledger.uploads import uploads_of
from clipfleet.common.store import Record
from clipfleet.workers.analysis.near import group_near, split_apart
from clipfleet.workers.analysis.task import Refused, Run

MAX_IMAGES = 2_000_000  # of one run; two cores would take some ten hours

Numbers = NDArray[np.int64]
Columns = dict[str, NDArray[np.generic]]


class FindDuplicates:
    """Looks for images with the same bytes and for near images."""

    def work(self, run: Run, rows: Sequence[Record]) -> int:
        data = io.BytesIO()
        np.savez(data, embedding=_unit(rows, run.collection.dim), **_columns(rows))
        key = f"{_blobs_of(run)}/{rows[0].pk}.npz"
        run.patiently(lambda: run.blobs.put(key, io.BytesIO(data.getvalue())))
        return len(rows)

    def finish(self, run: Run) -> None:
        keys = run.patiently(lambda: run.blobs.keys_below(_blobs_of(run)))
        images = _Images.read(run, keys)
        with _ranked(run, keys, images) as vectors:
            groups = _grouped(run, images, vectors)
        parameters = run.parameters
        summary = Summary(
            job=run.job.id,
            made_at=float(parameters["made_at"]),
            threshold=float(parameters["threshold"]),
            keep=parameters["keep"],
            namespace=run.job.new.source["namespace"],
            images=len(images.pks),
            exact=len(groups["exact"]),
            near=len(groups["near"]),
        )
        progress = run.lease.progress
        run.patiently(
            lambda: write_result(run.blobs, run.collection, summary, groups, progress)
        )
        run.patiently(lambda: run.blobs.delete_below(_blobs_of(run)))


def _blobs_of(run: Run) -> str:
    return f"{uploads_of(run.job.id)}/rows"


def _unit(rows: Sequence[Record], dim: int) -> NDArray[np.float32]:
    """The embeddings at unit length; those of length 0 stay."""
    vectors = np.stack([row.embedding for row in rows]).astype(np.float64).reshape(-1, dim)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
    return unit


def _columns(rows: Sequence[Record]) -> Columns:
    return {
        "pk": np.array([row.pk for row in rows], "S32"),
        "hash": np.array([row.content_hash for row in rows], "S32"),
        "space": np.array([_space(row.namespace) for row in rows], np.int64),
        "pixels": np.array([row.width * row.height for row in rows], np.int64),
        "bytes": np.array([row.bytes for row in rows], np.int64),
        "indexed_at": np.array([row.indexed_at for row in rows], np.int64),
    }


def _space(namespace: str) -> int:
    """A number for a namespace."""
    digest = hashlib.blake2b(namespace.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass
class _Images:
    """All images of a run but their embeddings, the one to keep first.

    Attributes:
        places: by position in the blobs, one after the other, the rank of the image; -1 for one
            that came before: a chunk that was split may have written it twice.
    """

    pks: NDArray[np.bytes_]
    hashes: NDArray[np.bytes_]
    spaces: Numbers
    indexed_at: Numbers
    places: Numbers

    @classmethod
    def read(cls, run: Run, keys: Sequence[str]) -> "_Images":
        parts: list[Columns] = []
        for key in keys:
            with _opened(run, key) as arrays:
                parts.append({name: arrays[name] for name in arrays.files if name != "embedding"})
            run.lease.progress()
        if not parts:
            empty = np.empty(0, np.int64)
            return cls(np.empty(0, "S32"), np.empty(0, "S32"), empty, empty, empty)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _, first = np.unique(columns["pk"], return_index=True)
        if len(first) > MAX_IMAGES:
            raise Refused(
                f"the collection has more than {MAX_IMAGES:,} images; look for duplicates "
                "namespace by namespace"
            )
        order = first[_order({name: of[first] for name, of in columns.items()}, _keep(run))]
        places: Numbers = np.full(len(columns["pk"]), -1, np.int64)
        places[order] = np.arange(len(order))
        ranked = {name: of[order] for name, of in columns.items()}
        return cls(
            np.asarray(ranked["pk"], "S32"),
            np.asarray(ranked["hash"], "S32"),
            np.asarray(ranked["space"], np.int64),
            np.asarray(ranked["indexed_at"], np.int64),
            places,
        )


def _keep(run: Run) -> Keep:
    keep: Keep = run.parameters["keep"]
    return keep


def _order(columns: Columns, keep: Keep) -> Numbers:
    """The positions of images, the one to keep first. Equal ones follow their primary keys."""
    age, pixels, size = (np.asarray(columns[name], np.int64) for name in _BY)
    by_size, by_age = [-pixels, -size], [age]
    criteria = [*by_size, *by_age] if keep == "largest" else [*by_age, *by_size]
    order: Numbers = np.lexsort([columns["pk"], *reversed(criteria)])
    return order


_BY = ("indexed_at", "pixels", "bytes")


@contextmanager
def _opened(run: Run, key: str) -> Iterator["np.lib.npyio.NpzFile"]:
    raw = run.patiently(lambda: run.blobs.get(key, MAX_BYTES))
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        yield arrays


@contextmanager
def _ranked(run: Run, keys: Sequence[str], images: _Images) -> Iterator[NDArray[np.float32]]:
    """The embeddings in a temporary file, the image to keep first."""
    shape = (len(images.pks), run.collection.dim)
    if not len(images.pks):
        yield np.empty(shape, np.float32)
        return
    with tempfile.TemporaryFile() as file:
        _reserve(file.fileno(), 4 * shape[0] * shape[1])
        vectors = np.memmap(file, np.float32, "r+", shape=shape)
        start = 0
        for key in keys:
            with _opened(run, key) as arrays:
                part = arrays["embedding"]
            places = images.places[start : start + len(part)]
            vectors[places[places >= 0]] = part[places >= 0]
            start += len(part)
            run.lease.progress()
        yield vectors
        del vectors


def _reserve(descriptor: int, size: int) -> None:
    """Reserve room in a file, so that a full disk is an error here and not later.

    Raises:
        Unavailable: there is not enough room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
    except OSError as error:
        raise Unavailable(
            f"the worker needs {size / 1e6:,.0f} MB in its temporary folder (environment variable "
            f"TMPDIR): {error.strerror}"
        ) from error


def _grouped(
    run: Run, images: _Images, vectors: NDArray[np.float32]
) -> dict[Tier, list[Group]]:
    progress = run.lease.progress
    sets = run.patiently(lambda: read_apart(run.blobs, run.collection, progress=progress))
    known = numbered(sets)
    apart = {}
    if known:
        apart = {row: known[pk] for row, raw in enumerate(images.pks) if (pk := raw.decode()) in known}
    leaders = group_near(
        vectors, float(run.parameters["threshold"]), images.spaces, apart, lambda _: progress()
    )
    likes = _likes(images)
    exact = [
        group
        for members in _by_number(likes)
        for group in split_apart(members, apart)
        if len(group) > 1
    ]
    near = [members for members in _by_number(leaders) if len({likes[row] for row in members}) > 1]
    return {
        "exact": [_group(images, vectors, likes, members) for members in _largest_first(exact)],
        "near": [_group(images, vectors, likes, members) for members in _largest_first(near)],
    }


def _likes(images: _Images) -> Numbers:
    """A number for each image: the rank of the first image with the same bytes and namespace."""
    firsts: dict[tuple[int, bytes], int] = {}
    likes = np.arange(len(images.pks))
    for row, raw in enumerate(images.hashes.tolist()):
        if raw:
            likes[row] = firsts.setdefault((int(images.spaces[row]), raw[:BYTES_DIGITS]), row)
    return likes


def _by_number(numbers: Numbers) -> list[list[int]]:
    """The rows with equal numbers, where there are several; in the order of rows."""
    if not len(numbers):
        return []
    order = np.argsort(numbers, kind="stable")
    bounds = np.nonzero(np.diff(numbers[order]))[0] + 1
    return [rows.tolist() for rows in np.split(order, bounds) if len(rows) > 1]


def _largest_first(groups: list[list[int]]) -> list[list[int]]:
    return sorted(groups, key=lambda rows: (-len(rows), rows[0]))


def _group(
    images: _Images, vectors: NDArray[np.float32], likes: Numbers, rows: list[int]
) -> Group:
    """The group of rows of which the first is the leader."""
    similarities = np.clip(np.asarray(vectors[rows]) @ np.asarray(vectors[rows[0]]), -1, 1)
    numbers = {int(likes[rows[0]]): 0}
    return Group(
        members=tuple(
            Member(
                pk=images.pks[row].decode(),
                content_hash=images.hashes[row].decode(),
                indexed_at=int(images.indexed_at[row]),
                like=numbers.setdefault(int(likes[row]), len(numbers)),
                similarity=round(float(similarity), 6),
            )
            for row, similarity in zip(rows, similarities, strict=True)
        )
    )
