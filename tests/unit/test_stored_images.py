"""Jobs over stored images, with a planner, a worker and a task that counts what it gets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.api.jobs.service import new_job_id
from clipfleet.common.collection import Collection
from clipfleet.common.identity import primary_key
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.shown import job_out
from clipfleet.common.ledger.stored_images import TASKS as SHAPES
from clipfleet.common.ledger.stored_images import VERSION, Shape, shape_of, stored_images
from clipfleet.common.store import Record
from clipfleet.workers.analysis.task import Refused, Run
from support.mirror_harness import World

NAMES = [f"image {n}" for n in range(10)]


class Seeing:
    """A task that notes the images that it gets, and when it finishes."""

    def __init__(self) -> None:
        self.chunks: list[list[str]] = []
        self.finished: list[int] = []
        self.breaks: set[str] = set()

    def work(self, run: Run, rows: Sequence[Record]) -> int:
        run.lease.progress()
        if self.breaks & {row.id for row in rows}:
            raise ValueError("this image breaks the task")
        assert all(len(row.embedding) == run.collection.dim for row in rows)
        self.chunks.append([row.id for row in rows])
        return len(rows)

    def finish(self, run: Run) -> None:
        run.lease.confirm()
        self.finished.append(sum(map(len, self.chunks)))

    @property
    def seen(self) -> list[str]:
        return sorted(name for chunk in self.chunks for name in chunk)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as running:
        yield World(tmp_path, running)


@pytest.fixture
def task(world: World) -> Seeing:
    task = Seeing()
    world.worker = replace(world.worker, tasks=dict.fromkeys(SHAPES, task))
    return task


def stored(world: World, names: Sequence[str] = NAMES, namespace: str = "default") -> Collection:
    collection = world.collection()
    rows = [
        Record(
            pk=primary_key(namespace, name),
            id=name,
            namespace=namespace,
            uri="",
            embedding=np.eye(1, collection.dim, dtype=np.float32)[0],
            metadata={"number": n},
        )
        for n, name in enumerate(names)
    ]
    world.store.upsert(collection, rows)
    return collection


def start(world: World, name: Any, **options: Any) -> str:
    collection = world.collection()
    source = stored_images(name, {}, rows=4, **options)
    new = NewJob(
        v=VERSION,
        id=new_job_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=options.get("namespace") or "",
        source=source,
    )
    return world.ledger.create(new).id


def test_each_image_comes_once_and_the_job_shows_its_task(world: World, task: Seeing) -> None:
    stored(world)
    job_id = start(world, "tags")
    world.finish()
    job = world.ledger.job(job_id)
    assert (job.state, job.total, job.done) == ("succeeded", 10, 10)
    assert (task.seen, task.finished) == (NAMES, [])
    shown = job_out(job)
    assert (shown.source, shown.task, shown.collection) == ("stored images: tags", "tags", "c")


def test_only_the_images_of_a_namespace_and_a_filter(world: World, task: Seeing) -> None:
    stored(world)
    stored(world, ["elsewhere"], "other")
    filtered: Mapping[str, Any] = {"number": {"$lt": 2}}
    start(world, "tags", namespace="default", where=filtered)
    world.finish()
    assert task.seen == NAMES[:2]
    task.chunks.clear()
    start(world, "tags")
    world.finish()
    assert task.seen == sorted([*NAMES, "elsewhere"])


def test_the_last_step_comes_once_and_after_all_images(world: World, task: Seeing) -> None:
    stored(world)
    job_id = start(world, "map")
    world.finish()
    job = world.ledger.job(job_id)
    assert (job.state, job.total, job.done) == ("succeeded", 10, 10)
    assert (task.seen, task.finished, len(task.chunks[-1])) == (NAMES, [10], 1)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_the_last_step_of_small_collections(world: World, task: Seeing, count: int) -> None:
    stored(world, NAMES[:count])
    job_id = start(world, "duplicates")
    world.finish()
    assert world.ledger.job(job_id).state == "succeeded"
    assert task.finished == ([count] if count else [])


def test_the_last_step_waits_for_a_worker_that_died(world: World, task: Seeing) -> None:
    stored(world)
    job_id = start(world, "map")
    world.planner.tick()
    world.lose_chunk()
    world.finish()
    job = world.ledger.job(job_id)
    assert (job.state, job.done, task.seen) == ("succeeded", 10, NAMES)
    assert task.finished == [10]


def test_the_last_step_comes_also_when_the_last_image_is_deleted(
    world: World, task: Seeing
) -> None:
    collection = stored(world)
    job_id = start(world, "map")
    world.planner.tick()
    last = max(primary_key("default", name) for name in NAMES)
    world.store.delete(collection, [last])
    world.new_planner()
    world.finish()
    job = world.ledger.job(job_id)
    assert (job.state, job.done, job.skipped, task.finished) == ("succeeded", 9, 1, [9])


def test_an_image_that_breaks_the_task_fails_alone_and_is_tried_again(
    world: World, task: Seeing
) -> None:
    stored(world)
    task.breaks = {"image 3"}
    job_id = start(world, "tags")
    world.finish()
    job = world.ledger.job(job_id)
    assert (job.state, job.done, job.failed) == ("partial", 9, 1)
    assert [failure.id for failure in world.ledger.failures(job_id)] == ["image 3"]


@pytest.mark.usefixtures("task")
def test_images_that_are_deleted_meanwhile_count_as_skipped(world: World) -> None:
    collection = stored(world)
    job_id = start(world, "tags")
    world.planner.tick()
    world.store.delete(collection, [primary_key("default", "image 1")])
    world.finish()
    job = world.ledger.job(job_id)
    assert (job.state, job.done, job.skipped) == ("succeeded", 9, 1)


def test_a_task_that_refuses_cancels_the_job_with_its_reason(world: World) -> None:
    class Refusing(Seeing):
        def work(self, run: Run, rows: Sequence[Record]) -> int:  # noqa: ARG002
            raise Refused("the field has another type")

    world.worker = replace(world.worker, tasks={"tags": Refusing()})
    stored(world)
    job_id, other = start(world, "tags"), start(world, "map")
    world.finish()
    assert world.ledger.job(job_id).error == "the field has another type"
    job = world.ledger.job(other)
    assert (job.state, job.error) == (
        "cancelled", "this release has no task 'map' over stored images",
    )  # fmt: skip


def test_a_deleted_collection_ends_the_job(world: World, task: Seeing) -> None:
    collection = stored(world)
    job_id = start(world, "tags")
    world.planner.tick()
    world.catalogue.remove(collection)
    world.finish()
    assert world.ledger.job(job_id).error == "the collection was deleted"
    assert not task.chunks


def test_every_task_has_a_shape() -> None:
    assert all(shape.rows > 0 for shape in SHAPES.values())
    assert shape_of({"task": "of a later release"}) == Shape()
