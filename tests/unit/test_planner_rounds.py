"""The cost of a planning round, and how planners share the jobs."""

from collections import Counter
from typing import Any

import pytest

from clipfleet.common.ledger import LOOK_INTERVAL_S, NewJob
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.workers.planner.planner import MAX_LOOKS, Planner
from clipfleet.workers.planner.readers import Readers
from clipfleet.workers.sources import Source
from support.worker_harness import Planning, storage_of

ITEMS = [{"id": str(n), "uri": "", "read": f"blob:{n}"} for n in range(1_000)]


class Counting:
    """A ledger that counts its calls by method."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger, self.calls = ledger, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._ledger, name)


class Opening(Planner):
    """A planner that counts how often it opens the source of each job."""

    opened: Counter[str]

    def _open(self, new: NewJob) -> Source:
        self.opened[new.id] += 1
        return super()._open(new)


class World(Planning):
    def __init__(self) -> None:
        super().__init__()
        self.opened = Counter[str]()
        self.counting: Any = Counting(self.ledger)

    def opening(self, name: str) -> Opening:
        planner = Opening(
            name, self.counting, self.fleet, self.publisher,
            self.settings, storage_of(self.settings), Readers(patience_s=30), self.metrics,
            self.clock,
        )  # fmt: skip
        planner.opened = self.opened
        return planner

    def settle(self, *planners: Planner) -> None:
        """Tick until no planner has a reason for another round."""
        for _ in range(200):
            ticked = [planner.tick() for planner in planners]
            if not any(ticked):
                return
        raise AssertionError("the planners do not come to rest")


@pytest.fixture
def world() -> World:
    return World()


def test_jobs_that_are_not_due_cost_one_call_to_the_ledger(world: World) -> None:
    for n in range(150):
        world.job(1_000, f"job{n:03}")
    planner = world.opening("one")
    world.settle(planner)
    world.counting.calls.clear()
    for _ in range(5):
        assert not planner.tick()
    assert world.counting.calls == {"tend": 5}


def test_a_job_is_looked_at_every_so_often_and_nothing_is_written(world: World) -> None:
    for n in range(MAX_LOOKS + 50):
        world.job(1_000, f"job{n:03}")
    planner = world.opening("one")
    world.settle(planner)
    world.counting.calls.clear()
    world.clock.now += LOOK_INTERVAL_S
    assert planner.tick(), "there is more to look at"
    assert not planner.tick()
    assert world.counting.calls == {"tend": 2}


def test_a_job_is_planned_beside_others_that_wait_and_they_are_not_looked_at(world: World) -> None:
    world.worker()
    for n in range(100):
        world.job_of({"type": "upload", "items": ITEMS}, f"other{n:03}", model="another")
    world.job(100_000, "big")
    planner = world.opening("one")
    for _ in range(10):
        planner.tick()
    before = world.ledger.job("big").total
    world.counting.calls.clear()
    for _ in range(20):
        world.serve()
        planner.tick()
    assert world.ledger.job("big").total == before + 20 * 32
    assert world.counting.calls["plan"] == 20
    assert world.counting.calls["set_waiting_reason"] == world.counting.calls["job"] == 0


def owned(world: World, *names: str) -> list[int]:
    return [len(world.ledger.owned(name)) for name in names]


def test_two_planners_share_the_jobs_and_open_each_source_once(world: World) -> None:
    world.worker()
    first, second = world.opening("one"), world.opening("two")
    world.settle(first, second)
    for n in range(40):
        world.job(1_000, f"job{n:02}")
    seen: list[str] = []
    for _ in range(5):
        world.settle(first, second)
        seen += world.serve_all()
    assert owned(world, "one", "two") == [20, 20]
    assert len(world.opened) == 40
    assert set(world.opened.values()) == {1}
    while world.ledger.active():
        world.settle(first, second)
        seen += world.serve_all()
    assert sorted(seen) == sorted(f"job{n:02}-{m}" for n in range(40) for m in range(1_000))


def test_a_planner_that_joins_gets_its_share_and_no_image_comes_twice(world: World) -> None:
    world.worker()
    first, second = world.opening("one"), world.opening("two")
    for n in range(40):
        world.job(150, f"job{n:02}")
    world.settle(first)
    assert owned(world, "one", "two") == [40, 0]
    world.settle(second, first)
    world.settle(second, first)
    assert owned(world, "one", "two") == [20, 20]
    seen: list[str] = []
    while world.ledger.active():
        seen += world.serve_all()
        world.settle(first, second)
    assert sorted(seen) == sorted(f"job{n:02}-{m}" for n in range(40) for m in range(150))
    assert max(world.opened.values()) <= 2


def test_the_jobs_of_a_planner_that_died_are_taken_over_when_its_lease_ran_out(
    world: World,
) -> None:
    world.worker()
    first, second = world.opening("one"), world.opening("two")
    for n in range(10):
        world.job(1_000, f"job{n}")
    world.settle(first)
    second.tick()
    world.clock.now += world.settings.plan_lease_s - 1
    second.tick()
    assert owned(world, "one", "two") == [10, 0]
    world.clock.now += 2
    world.settle(second)
    assert owned(world, "one", "two") == [0, 10]


def test_a_job_that_ends_leaves_its_planner_and_the_source_is_let_go(world: World) -> None:
    planner = world.opening("one")
    for n in range(5):
        world.job(1_000, f"job{n}")
    world.settle(planner)
    world.ledger.cancel("job1")
    world.ledger.remove("job2")
    planner.tick()
    assert sorted(planner._owned) == sorted(planner._readers._readers) == ["job0", "job3", "job4"]
