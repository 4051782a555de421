"""A job is removed under its planner or its worker: no error, and nothing of it comes back."""

from collections.abc import Sequence

import pytest

from clipfleet.common.collection import Collection
from clipfleet.common.ledger import Claim, PlanLease, Unknown
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.store import Fingerprint
from clipfleet.common.store.memory import MemoryStore
from support.worker_harness import Planning, Workplace


def test_a_removed_job_is_planned_no_further_and_the_others_are() -> None:
    world = Planning()
    world.job(1_000)
    world.job(50, "fine")
    world.tick()
    world.ledger.remove("job")
    world.tick(5)
    assert world.ledger.active() == ["fine"]
    assert {world.take().job_id for _ in range(world.pending())} == {"fine"}
    assert world.ledger.job("fine").planned


class Vanishing(MemoryLedger):
    """A job is removed as soon as it is leased."""

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None:
        lease = super().lease(job_id, planner, seconds)
        if job_id == "job" and lease:
            self.remove(job_id)
        return lease


def test_a_job_removed_under_its_planner_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    world = Planning(Vanishing())
    world.job(10)
    world.job(10, "fine")
    world.tick(2)
    assert [job.id for job in world.ledger.jobs()] == ["fine"]
    assert world.ledger.job("fine").planned
    assert caplog.records == []


class Forgotten(MemoryLedger):
    """The job is removed as soon as a chunk of it is claimed."""

    def claim(
        self, model: str, worker: str, seconds: float, max_attempts: int, *, remote: bool = False
    ) -> Claim | Unknown | None:
        claim = super().claim(model, worker, seconds, max_attempts, remote=remote)
        self.remove("job")
        return claim


def test_a_job_removed_as_its_chunk_is_claimed_is_left_alone(workplace: Workplace) -> None:
    workplace.ledger = Forgotten(workplace.clock)
    workplace.plan([workplace.photo("a.jpg")])
    assert workplace.work() == 0
    assert workplace.store.count(workplace.collection) == 0
    assert workplace.ledger.jobs() == []


class Removing(MemoryStore):
    """The job is removed, and its collection dropped, when a worker first asks the store."""

    def __init__(self, world: Workplace, dropped: bool) -> None:
        super().__init__()
        self.world, self.dropped = world, dropped

    def fingerprints(self, collection: Collection, keys: Sequence[str]) -> dict[str, Fingerprint]:
        self.world.ledger.remove("job")
        if self.dropped:
            self.drop(collection)
        return super().fingerprints(collection, keys)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_job_removed_under_its_worker_stays_removed(workplace: Workplace, dropped: bool) -> None:
    """And its worker writes nothing more, whether its collection went, too, or not."""
    workplace.store = Removing(workplace, dropped)
    workplace.store.create(workplace.collection)
    workplace.plan([workplace.photo("a.jpg")])
    workplace.work()
    assert workplace.ledger.jobs() == []
    assert workplace.ledger.open_chunks("job") == []
    if not dropped:
        assert workplace.store.count(workplace.collection) == 0
