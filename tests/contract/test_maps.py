"""Maps on every store: the same images have the same places."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger import Job, NewJob
from clipfleet.common.ledger.catalogue import MemoryCatalogue
from clipfleet.common.ledger.stored_images import VERSION, results_of, stored_images
from clipfleet.common.maps import Maps, Page
from clipfleet.common.store import Store
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.analysis.map import Map
from clipfleet.workers.analysis.task import Run
from support.stores import DIM, a_record

T = TypeVar("T")
COUNT, CHUNK = 40, 7


class Held:
    """A lease that is never lost."""

    def progress(self) -> None: ...

    def confirm(self) -> None: ...

    def retry_while_unavailable(self, call: Callable[[], T], waiting: Any) -> T:  # noqa: ARG002
        return call()


def map_of(store: Store, photos: Collection, folder: Path) -> Page:
    """The points of a map that is made chunk by chunk, the second chunk twice."""
    blobs = Blobs(str(folder))
    source = stored_images("map", {"method": "pca", "namespace": "default"})
    new = NewJob(
        v=VERSION, id="j", collection=photos.name, generation=photos.generation,
        model=photos.model, namespace="default", source=source,
    )  # fmt: skip
    run = Run(
        job=Job(new, "running", 0.0), collection=photos, lease=Held(), store=store,
        catalogue=MemoryCatalogue(), blobs=blobs, embedder=HashEmbedder(DIM),
        stopping=threading.Event(), metadata_bytes=8_000, waiting=lambda _: None,
    )  # fmt: skip
    rows = store.scan(photos, limit=COUNT, include_values=True)
    task = Map()
    for start in range(0, COUNT, CHUNK):
        task.work(run, rows[start : start + CHUNK])
    task.work(run, rows[CHUNK : CHUNK + 3])
    task.work(run, rows[CHUNK + 3 : 2 * CHUNK])
    task.finish(run)
    task.finish(run)
    maps = Maps(blobs, results_of(photos), "default")
    head = maps.head()
    assert head is not None
    assert (head.points, head.method) == (COUNT, "pca")
    return maps.page(head, 0)


def test_a_map_is_the_same_on_every_store(store: Store, photos: Collection, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    rows = [
        replace(a_record(f"{n}", n), embedding=numbers.normal(size=DIM).astype(np.float32))
        for n in range(COUNT)
    ]
    store.upsert(photos, rows)
    twin = MemoryStore()
    twin.create(photos)
    twin.upsert(photos, rows)
    page = map_of(store, photos, tmp_path / "store")
    same = map_of(twin, photos, tmp_path / "twin")
    assert page.ids == same.ids
    assert sorted(page.ids) == sorted(row.id for row in rows)
    assert np.allclose([page.x, page.y], [same.x, same.y], atol=1e-3)
    assert page.codes == same.codes
