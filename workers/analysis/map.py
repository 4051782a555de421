"""The task that makes a map: each image gets a place in two dimensions.

Each chunk leaves its embeddings as a part in the blob store. The finishing step goes through the
parts twice, for the principal components and for the places, so that the memory that it takes does
not grow with the length of all embeddings.
"""

import io
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from clipfleet.common.ledger.stored_images import results_of
from clipfleet.common.ledger.uploads import uploads_of
from clipfleet.common.maps import PAGE_POINTS, MapHead, Maps, Page, Value
from clipfleet.common.store import Record, Vectors
from clipfleet.workers.analysis.colours import coloured, fields_of, values_of
from clipfleet.workers.analysis.pca import StreamedPca, in_unit_square, of_length_one
from clipfleet.workers.analysis.projection import (
    FEWEST,
    ProjectionFailed,
    has_pacmap,
    place,
    project,
)
from clipfleet.workers.analysis.task import Refused, Run

COMPONENTS = 50  # that PaCMAP gets
SAMPLE = 50_000  # images that PaCMAP places; keys are hashes, so the first ones are at random
MAX_PART_BYTES = 1 << 31
DIGITS = 5  # of a coordinate


class Part(NamedTuple):
    """The images of a chunk.

    Attributes:
        keys: their primary keys, in order.
        ids: their ids.
        values: of each image, the values of the fields.
        embeddings: float32 [n, dim].
    """

    keys: list[str]
    ids: list[str]
    values: list[list[Value | None]]
    embeddings: Vectors


class Reduced(NamedTuple):
    """All images, shorter.

    Attributes:
        ids: their ids, in the order of their primary keys.
        values: of each image, the values of the fields.
        reduced: their first principal components, float32 [n, k].
    """

    ids: list[str]
    values: list[list[Value | None]]
    reduced: Vectors


class Map:
    """The task that makes a map.

    Args:
        sample: how many images PaCMAP places; the others come beside their neighbours.
    """

    def __init__(self, sample: int = SAMPLE) -> None:
        self._sample = sample

    def work(self, run: Run, rows: Sequence[Record]) -> int:
        fields = fields_of(run.collection, str(run.parameters.get("field") or ""))
        text = {
            "keys": [row.pk for row in rows],
            "ids": [row.id for row in rows],
            "values": [values_of(row, fields) for row in rows],
        }
        file = io.BytesIO()
        embeddings = np.stack([row.embedding for row in rows])
        if run.collection.metric == "cosine":
            embeddings = of_length_one(embeddings)
        np.savez(file, text=np.frombuffer(json.dumps(text).encode(), np.uint8), rows=embeddings)
        key = f"{_parts_of(run)}/{rows[0].pk}-{len(rows)}.npz"
        run.patiently(lambda: run.blobs.put(key, io.BytesIO(file.getbuffer())))
        return len(rows)

    def finish(self, run: Run) -> None:
        """Place all images, and write the map.

        Raises:
            Refused: PaCMAP is asked for, and this worker does not have it.
        """
        namespace = str(run.parameters["namespace"])
        maps = Maps(run.blobs, results_of(run.collection), namespace)
        known = run.patiently(maps.head)
        if known is not None and known.job_id == run.job.id:  # only the mark is missing
            run.patiently(partial(run.blobs.delete_below, _parts_of(run)))
            return
        method = _method(run)
        keys = run.patiently(partial(run.blobs.keys_below, _parts_of(run)))
        images = _reduced(run, keys, COMPONENTS if method == "pacmap" else 2)
        points, sampled = self._places(run, images.reduced, method)
        fields = fields_of(run.collection, str(run.parameters.get("field") or ""))
        columns = {
            name: coloured([row[n] for row in images.values]) for n, name in enumerate(fields)
        }
        head = MapHead(
            job_id=run.job.id,
            namespace=namespace,
            began_at=run.job.created_at,
            made_at=time.time(),
            method="pacmap" if sampled else "pca",
            seed=_seed(run),
            points=len(images.ids),
            sampled=sampled,
            fields={name: colours for name, (colours, _) in columns.items()},
        )
        codes = {name: places for name, (_, places) in columns.items()}
        run.patiently(run.lease.confirm)
        run.patiently(partial(maps.write, head, _pages(images.ids, points, codes)))
        run.patiently(partial(run.blobs.delete_below, _parts_of(run)))

    def _places(self, run: Run, reduced: Vectors, method: str) -> tuple[Vectors, int]:
        """The place of each image, and how many of them PaCMAP placed."""
        if method == "pca" or len(reduced) < FEWEST or not np.any(np.ptp(reduced, axis=0) > 0):
            return in_unit_square(reduced[:, :2]), 0
        count = min(self._sample, len(reduced))
        sample = reduced[:count]
        try:
            points = project(sample, _seed(run), run.lease.progress)
        except ProjectionFailed as error:
            raise Refused(f"{error}; the method pca needs no PaCMAP") from error
        placed = [points]
        for start in range(count, len(reduced), PAGE_POINTS):
            run.lease.progress()
            placed.append(place(reduced[start : start + PAGE_POINTS], sample, points))
        return in_unit_square(np.concatenate(placed)), count


def _reduced(run: Run, keys: Sequence[str], components: int) -> Reduced:
    """All images with their first principal components, at least two."""
    pca = StreamedPca(run.collection.dim, _seed(run))
    for part in _parts(run, keys):
        pca.add(part.embeddings)
    run.lease.progress()
    width = max(2, min(components, run.collection.dim))
    reduction = pca.reduction(width)
    images = Reduced([], [], np.empty((pca.count, width), np.float32))
    for part in _parts(run, keys):
        begin = len(images.ids)
        images.reduced[begin : begin + len(part.ids)] = reduction.apply(part.embeddings)
        images.ids.extend(part.ids)
        images.values.extend(part.values)
    return images


def _method(run: Run) -> str:
    method = str(run.parameters["method"])
    if method == "pacmap" and not has_pacmap():
        raise Refused(
            "the worker has no PaCMAP: install clipfleet with the extra `map` where workers run, "
            "or ask for the method pca or auto"
        )
    if method == "auto":
        return "pacmap" if has_pacmap() else "pca"
    return method


def _seed(run: Run) -> int:
    return int(run.parameters.get("seed") or 0)


def _parts_of(run: Run) -> str:
    return f"{uploads_of(run.job.id)}/map"


def _parts(run: Run, keys: Sequence[str]) -> Iterator[Part]:
    """The parts in the order of primary keys, each image once.

    A chunk that was split after it had been written has left its images twice.
    """
    last = ""
    for key in keys:
        run.lease.progress()
        part = _read(run.patiently(partial(run.blobs.get, key, MAX_PART_BYTES)))
        new = [place for place, pk in enumerate(part.keys) if pk > last]
        if not new:
            continue
        last = part.keys[new[-1]]
        if len(new) == len(part.keys):
            yield part
            continue
        yield Part(
            [part.keys[n] for n in new],
            [part.ids[n] for n in new],
            [part.values[n] for n in new],
            part.embeddings[new],
        )


def _read(data: bytes) -> Part:
    with np.load(io.BytesIO(data)) as arrays:
        text = json.loads(arrays["text"].tobytes())
        return Part(text["keys"], text["ids"], text["values"], arrays["rows"])


def _pages(ids: Sequence[str], points: Vectors, codes: dict[str, list[int]]) -> list[Page]:
    return [
        Page(
            ids=list(ids[start : start + PAGE_POINTS]),
            x=[round(float(x), DIGITS) for x in points[start : start + PAGE_POINTS, 0]],
            y=[round(float(y), DIGITS) for y in points[start : start + PAGE_POINTS, 1]],
            codes={name: places[start : start + PAGE_POINTS] for name, places in codes.items()},
        )
        for start in range(0, len(ids), PAGE_POINTS)
    ]
