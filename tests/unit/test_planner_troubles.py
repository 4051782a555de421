"""Planning while parts are away or broken."""

from collections.abc import Mapping, Sequence

import pytest

from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Item, OpenChunk
from clipfleet.common.ledger.memory import MemoryLedger
from support.worker_harness import Planning


class Flaky(MemoryLedger):
    """Redis is away exactly when the n-th chunk is to be written."""

    def __init__(self, failing: int) -> None:
        super().__init__()
        self.calls, self.failing = 0, failing

    def plan(
        self,
        job_id: str,
        token: str,
        items: Sequence[Item],
        after: str,
        cursor: str,
        notes: Mapping[str, int] | None = None,
        skipped: int = 0,
    ) -> str | None:
        self.calls += 1
        if self.calls == self.failing:
            raise Unavailable("Redis is away")
        return super().plan(job_id, token, items, after, cursor, notes, skipped)


def test_images_listed_while_redis_was_away_are_not_lost() -> None:
    world = Planning(Flaky(2))
    world.job(100)
    with pytest.raises(Unavailable):
        world.tick()
    assert world.finish() == [f"job-{n}" for n in range(100)]


class Deaf(MemoryLedger):
    """Redis is away exactly when the end of the planning is to be written."""

    heard = False

    def finish_planning(
        self,
        job_id: str,
        token: str,
        after: str,
        error: str = "",
        notes: Mapping[str, int] | None = None,
    ) -> bool:
        if not self.heard:
            self.heard = True
            raise Unavailable("Redis is away")
        return super().finish_planning(job_id, token, after, error, notes)


def test_a_source_that_breaks_midway_never_counts_as_all_of_it() -> None:
    world = Planning(Deaf())
    good = [{"id": str(n), "uri": "", "read": f"blob:{n}"} for n in range(40)]
    world.job_of({"type": "upload", "items": [*good, {"no": "id"}, *good]})
    with pytest.raises(Unavailable):
        world.tick()
    world.finish()
    assert world.ledger.job("job").state == "failed"


class Poisoned(MemoryLedger):
    """One job's record cannot be understood (written by another version, say)."""

    def open_chunks(self, job_id: str) -> list[OpenChunk]:
        if job_id == "bad":
            raise ValueError("not the version I know")
        return super().open_chunks(job_id)


def test_a_broken_job_does_not_hold_back_the_others() -> None:
    world = Planning(Poisoned())
    world.job(10, "bad")
    world.job(10, "fine")
    for _ in range(3):
        try:
            world.tick()
        except ValueError:
            continue
    assert len(world.names("fine")) == 1
