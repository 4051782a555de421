"""Sources that hang: the others go on, the job says so, and it can be cancelled."""

import threading
from collections.abc import Iterator

import pytest

from clipfleet.common.ledger import Item, NewJob
from clipfleet.workers import readers
from clipfleet.workers.planner import Planner
from clipfleet.workers.readers import Readers
from clipfleet.workers.sources import Listed, Source, SourceError
from support import services
from support.worker_harness import Planning


class Hanging:
    """Two images, between which it hangs until it is let go."""

    def __init__(self) -> None:
        self.go, self.read = threading.Event(), 0

    def stream(self, after: str) -> Iterator[Listed]:
        for n in range(int(after or 0), 2):
            if n == 1:
                self.go.wait()
            self.read += 1
            yield Listed(Item(id=str(n), uri="", read="blob:x"), str(n + 1))

    def count(self) -> int:
        return 2

    def nothing_found(self) -> str:
        return "nothing"


class Hung(Planner):
    """Sources of the kind "ours" hang."""

    source: Source

    def _open(self, new: NewJob) -> Source:
        return self.source if new.source["type"] == "ours" else super()._open(new)


class World(Planning):
    def __init__(self) -> None:
        self.source = Hanging()
        super().__init__()

    def new_planner(self, name: str) -> Planner:
        planner = Hung(
            name, self.ledger, self.fleet, self.publisher,
            super().new_planner("x")._settings, super().new_planner("x")._places, Readers(),
        )  # fmt: skip
        planner.source = self.source
        return planner

    def finish_one(self, job: str) -> list[str]:
        """Plan and work until the job has ended; the ids that were worked on."""
        seen: list[str] = []

        def ended() -> bool:
            self.tick()
            seen.extend(self.serve_all())
            return self.ledger.job(job).finished_at is not None

        services.eventually(ended, 30, "the end of the job")
        return seen

    def waiting(self, job: str) -> str:
        self.tick()
        return self.ledger.job(job).waiting


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(readers, "HANGS_S", 0.05)
    made = World()
    made.worker()
    yield made
    made.source.go.set()


def test_while_one_source_hangs_other_jobs_are_done(world: World) -> None:
    world.job_of({"type": "ours"}, "hanging")
    world.job(300, "other")
    assert world.finish_one("other") == [f"other-{n}" for n in range(300)]
    assert world.ledger.job("other").state == "succeeded"
    assert world.ledger.job("hanging").state == "running"


def test_a_job_whose_source_hangs_says_so_until_it_answers(world: World) -> None:
    world.job_of({"type": "ours"}, "hanging")
    said = services.eventually(lambda: world.waiting("hanging"), 30, "a reason")
    assert said.startswith("its source has not answered for")
    world.source.go.set()
    assert services.eventually(lambda: not world.waiting("hanging"), 30, "no reason any more")
    assert sorted(world.finish_one("hanging")) == ["0", "1"]


def test_a_job_whose_source_hangs_can_be_cancelled(world: World) -> None:
    world.job_of({"type": "ours"}, "hanging")
    world.tick()
    assert world.ledger.cancel("hanging").state == "cancelled"
    world.source.go.set()
    world.tick(5)
    assert world.ledger.open_chunks("hanging") == []


def test_a_planner_whose_source_hangs_hands_over_and_the_next_one_begins_at_the_cursor(
    world: World,
) -> None:
    world.job_of({"type": "ours"}, "hanging")
    world.tick()
    world.planner.release()
    world.source = Hanging()
    world.source.go.set()
    world.planner = world.new_planner("two")
    assert sorted(world.finish_one("hanging")) == ["0", "1"]


def test_a_source_that_hangs_gives_up_its_place_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MOST_STEPS", 1)
    world.job_of({"type": "ours"}, "hanging")
    world.job(3, "other")
    assert world.finish_one("other") == ["other-0", "other-1", "other-2"]


def test_so_many_sources_may_hang_and_the_next_job_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MOST_STEPS", 1)
    monkeypatch.setattr(readers, "MOST_HANGING", 1)
    world.job_of({"type": "ours"}, "hanging")
    services.eventually(lambda: world.waiting("hanging"), 30, "a reason")
    world.job(3, "other")
    assert "many other jobs' sources" in world.waiting("other")
    world.source.go.set()
    world.finish_one("other")
    assert world.ledger.job("other").done == 3


def test_what_a_thread_raises_comes_out_where_the_answer_is_taken() -> None:
    def missing() -> Source:
        raise SourceError("there is no such thing")

    some = Readers(patience_s=30)
    assert some.ask("job", "", 8, missing)
    some.wait()
    reader = some.answered("job")
    assert reader is not None
    with pytest.raises(SourceError, match="no such thing"):
        reader.taken()
