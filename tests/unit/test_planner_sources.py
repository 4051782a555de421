"""How the planner handles sources that break off or are unavailable."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.common.blobs import BlobsUnavailable
from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Item, Job, NewJob
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.planner.readers import Readers
from clipfleet.workers.sources import Listed, Source
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.storage.locations import BucketAway
from support.archives import packed
from support.worker_harness import Planning


def ended(world: Planning) -> tuple[Job, list[str]]:
    seen: list[str] = []
    for _ in range(100):
        world.tick()
        if not world.ledger.active():
            return world.ledger.job("job"), seen
        seen += world.serve_all()
    raise AssertionError("the job does not end")


@pytest.mark.parametrize("images", [3, 40, 100])
def test_what_came_before_the_damage_is_planned_and_the_job_says_so(
    tmp_path: Path, images: int
) -> None:
    whole = packed("a.tar", {f"{n}.jpg": b"x" * 512 for n in range(images)})
    (tmp_path / "a.tar").write_bytes(whole[: images * 1_024 - 300])
    world = Planning(roots=(tmp_path,))
    world.job_of({"type": "archive", "uri": str(tmp_path / "a.tar")})
    job, seen = ended(world)
    assert [image_id.partition("#")[2] for image_id in seen] == [f"{n}.jpg" for n in range(images)]
    assert (job.state, job.done) == ("failed", images)
    assert "is damaged" in job.error


def test_a_job_counts_what_it_leaves_out(tmp_path: Path) -> None:
    for name in [*(f"{n:03d}.jpg" for n in range(100)), "0.psd", "050.mov", "z.psd"]:
        (tmp_path / name).write_bytes(b"1")
    world = Planning(roots=(tmp_path,))
    world.job_of({"type": "folder", "path": str(tmp_path)})
    job, seen = ended(world)
    assert len(seen) == 100
    assert job.notes == {".psd": 2, ".mov": 1}


def test_a_job_of_other_files_alone_fails_and_counts_them(tmp_path: Path) -> None:
    (tmp_path / "0.psd").write_bytes(b"1")
    world = Planning(roots=(tmp_path,))
    world.job_of({"type": "folder", "path": str(tmp_path)})
    job, _ = ended(world)
    assert (job.state, job.notes) == ("failed", {".psd": 1})


class Passing:
    """A source that is unavailable for its first `times` reads."""

    def __init__(self, error: Unavailable, times: int) -> None:
        self._error, self._times, self.notes = error, times, Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        for n in range(int(after or 0), 5):
            if n == 2 and self._times:
                self._times -= 1
                raise self._error
            yield Listed(Item(id=str(n), uri="", read="blob:x"), str(n + 1))

    def count(self) -> int:
        return 5

    def nothing_found(self) -> str:
        return "nothing"


class Waiting(Planner):
    source: Source

    def _open(self, new: NewJob) -> Source:
        return self.source if new.id == "job" else super()._open(new)


@pytest.mark.parametrize("error", [BucketAway("the bucket is away"), BlobsUnavailable("full")])
def test_a_job_whose_bucket_is_away_waits_says_why_and_keeps_no_other_waiting(
    error: Unavailable,
) -> None:
    world = Planning()
    planner = Waiting(
        "w", world.ledger, world.fleet, world.publisher,
        world.planner._settings, world.planner._storage,
        Readers(patience_s=30, clock=world.clock),
    )  # fmt: skip
    planner.source = Passing(error, times=3)
    world.worker()
    world.job_of({"type": "ours"})
    world.job(3, "other")
    world.tick(2, planner)
    assert world.ledger.job("job").waiting == error.detail
    assert world.serve() == ["other-0", "other-1", "other-2"]
    world.tick(4, planner, seconds=2)
    assert world.serve() == ["0", "1", "2", "3", "4"]
    world.tick(1, planner)
    assert world.ledger.job("job").state == "succeeded"
