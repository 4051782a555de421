"""Sources that hang: other jobs continue, the job names the reason, and it can be cancelled."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from clipfleet.common.fetch import LookUpsBusy
from clipfleet.common.ledger import Item, NewJob
from clipfleet.common.shares import Owner
from clipfleet.workers.planner import readers
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.planner.readers import Readers, Step
from clipfleet.workers.sources import Listed, Source, SourceError
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.storage.locations import BucketAway
from support import services
from support.silent import silent
from support.worker_harness import Planning

OWNER = Owner(name="c")
LOCAL: dict[str, object] = {"type": "ours"}
REMOTE: dict[str, object] = {"type": "ours", "uri": "http://silent.test/all.csv"}


class Hanging:
    """A source of two images that hangs between them until `go` is set."""

    def __init__(self) -> None:
        self.go, self.read, self.notes = threading.Event(), 0, Notes()

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
    """A planner for which every source of type "ours" hangs."""

    source: Source
    opened = 0

    def _open(self, new: NewJob) -> Source:
        if new.source["type"] != "ours":
            return super()._open(new)
        self.opened += 1
        return self.source


class World(Planning):
    def __init__(self) -> None:
        self.source = Hanging()
        super().__init__()

    def new_planner(self, name: str) -> Planner:
        planner = Hung(
            name, self.ledger, self.fleet, self.publisher,
            super().new_planner("x")._settings, super().new_planner("x")._storage,
            Readers(clock=self.clock), clock=self.clock,
        )  # fmt: skip
        planner.source = self.source
        return planner

    def finish_one(self, job: str) -> list[str]:
        """Plan and work until the job has ended; return the ids of the images worked on."""
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
    monkeypatch.setattr(readers, "HANG_AFTER_S", 0.05)
    created = World()
    created.worker()
    yield created
    created.source.go.set()


def test_while_one_source_hangs_other_jobs_are_done(world: World) -> None:
    world.job_of({"type": "ours"}, "hanging")
    world.job(300, "other")
    assert world.finish_one("other") == [f"other-{n}" for n in range(300)]
    assert world.ledger.job("other").state == "succeeded"
    assert world.ledger.job("hanging").state == "running"


def test_a_job_whose_source_hangs_says_so_until_it_answers(world: World) -> None:
    world.job_of({"type": "ours"}, "hanging")
    reason = services.eventually(lambda: world.waiting("hanging"), 30, "a reason")
    assert reason.startswith("the source has not answered for")
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
    monkeypatch.setattr(readers, "MAX_STEPS", 1)
    world.job_of({"type": "ours"}, "hanging")
    world.job(3, "other")
    assert world.finish_one("other") == ["other-0", "other-1", "other-2"]


def test_so_many_sources_may_hang_and_the_next_job_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_STEPS", 1)
    monkeypatch.setattr(readers, "MAX_HANGING", 1)
    world.job_of({"type": "ours"}, "hanging")
    services.eventually(lambda: world.waiting("hanging"), 30, "a reason")
    world.job(3, "other")
    assert "many sources of other jobs" in world.waiting("other")
    world.source.go.set()
    world.finish_one("other")
    assert world.ledger.job("other").done == 3


def test_what_a_thread_raises_comes_out_where_the_answer_is_taken() -> None:
    def missing() -> Source:
        raise SourceError("there is no such thing")

    some = Readers(patience_s=30)
    assert some.begin_step("job", "", 8, missing, OWNER) == ""
    some.wait()
    reader = some.take_finished("job")
    assert reader is not None
    with pytest.raises(SourceError, match="no such thing"):
        reader.result()


def test_a_source_that_hangs_again_is_reported_again() -> None:
    """The second hang is shorter than the first."""
    source, reading = Hanging(), Readers(patience_s=30)
    source.go.set()

    def begin(cursor: str) -> Step:
        assert reading.begin_step("job", cursor, 8, lambda: source, OWNER) == ""
        step = reading._readers["job"].step
        assert step
        return step

    begin("").began -= 100
    assert reading.hang_warning("job") == "the source has not answered for 100 s"
    reading.wait()
    reader = services.eventually(lambda: reading.take_finished("job"), 30, "the first step")
    reading.put_back("job", reader, "1")
    source.go.clear()
    begin("1").began -= 6
    assert reading.hang_warning("job") == "the source has not answered for 6 s"
    source.go.set()


def hang(
    world: World,
    jobs: int,
    collection: str = "c",
    source: dict[str, object] = LOCAL,
    key: str = "",
) -> list[str]:
    """Start this many jobs whose sources hang; return the names of the jobs."""
    names = [f"{collection}-{n}" for n in range(jobs)]
    for name in names:
        world.job_of(source, name, collection=collection, key=key)
    for name in names:
        services.eventually(partial(world.waiting, name), 30, f"a reason of {name}")
    return names


def test_cancelled_jobs_give_their_places_up_although_their_sources_hang_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_HANGING", 6)
    hanging = [*hang(world, 3, "a"), *hang(world, 2, "b"), *hang(world, 1, "c")]
    world.job(3, "good")
    assert world.waiting("good") == readers.TOO_MANY
    for job in hanging:
        world.ledger.cancel(job)
    assert world.finish_one("good") == ["good-0", "good-1", "good-2"]


def test_the_sources_of_one_collection_leave_places_to_those_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_HANGING", 8)
    hang(world, 2, "third")
    hang(world, 3)
    world.job(3, "same")
    assert world.waiting("same") == readers.TOO_MANY_OF_OWNER
    world.job(3, "other", collection="other")
    assert world.finish_one("other") == ["other-0", "other-1", "other-2"]
    assert world.ledger.job("same").total == 0


def test_the_sources_of_one_key_leave_places_to_those_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_HANGING", 8)
    for n in range(4):
        hang(world, 1, f"c{n}", key="mine")
    world.job(3, "same", collection="c9", key="mine")
    assert world.waiting("same") == readers.TOO_MANY_OF_OWNER
    world.job(3, "other", key="yours")
    assert world.finish_one("other") == ["other-0", "other-1", "other-2"]
    assert world.ledger.job("same").total == 0


def test_remote_sources_that_hang_leave_places_to_local_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_HANGING", 3)
    for n in range(3):
        hang(world, 1, f"c{n}", REMOTE)
    world.job_of(REMOTE, "remote", collection="other")
    assert world.waiting("remote") == readers.TOO_MANY
    world.job(3, "local", collection="other")
    assert world.finish_one("local") == ["local-0", "local-1", "local-2"]


def test_quick_steps_of_remote_sources_leave_places_to_local_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "HANG_AFTER_S", 3_600.0)
    monkeypatch.setattr(readers, "MAX_STEPS", 3)
    for n in range(4):
        world.job_of(REMOTE, f"remote-{n}", collection=f"c{n}")
    world.tick()
    assert sum(world.waiting(f"remote-{n}") == readers.TOO_MANY for n in range(4)) == 1
    world.job(3, "local", collection="other")
    assert world.finish_one("local") == ["local-0", "local-1", "local-2"]


def test_quick_steps_of_one_collection_leave_places_to_those_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "HANG_AFTER_S", 3_600.0)
    monkeypatch.setattr(readers, "MAX_STEPS", 4)
    for n in range(4):
        world.job_of({"type": "ours"}, f"one-{n}")
    world.tick()
    world.job(3, "other", collection="other")
    assert world.finish_one("other") == ["other-0", "other-1", "other-2"]


def test_a_planner_with_too_many_threads_of_dropped_sources_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_GIVEN_UP", 2)
    for job in hang(world, 2):
        world.ledger.cancel(job)
    assert world.planner.trouble() == ""
    world.tick()
    assert world.planner.trouble() == "2 sources of ended jobs hang"
    world.job(3, "good")
    assert world.waiting("good") == world.planner.trouble()
    world.source.go.set()
    assert world.finish_one("good") == ["good-0", "good-1", "good-2"]
    assert world.planner.trouble() == ""


def test_the_thread_of_a_source_that_waits_for_the_web_ends_with_its_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "HANG_AFTER_S", 0.05)
    with silent() as there:
        world = Planning(fetch={"allowed_networks": ["127.0.0.0/8"], "read_s": 600, "total_s": 600})
        world.planner._readers = Readers()
        before = set(threading.enumerate())
        world.job_of({"type": "manifest", "uri": f"{there.url}all.csv", "format": "csv"})
        world.tick()
        services.eventually(lambda: there.open == 1, 30, "a connection")
        (reader,) = (
            thread for thread in set(threading.enumerate()) - before if thread.name == "reader"
        )
        world.ledger.cancel("job")
        world.tick()
        reader.join(30)
        assert not reader.is_alive()
        services.eventually(lambda: there.open == 0, 30, "the end of the connection")
        world.planner._storage._fetcher.close()  # type: ignore[attr-defined]


class Away:
    """A bucket that does not answer until `back` is set. Its count hangs until `go` is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error or BucketAway("the bucket does not answer")
        self.back, self.counts, self.go = False, 0, threading.Event()
        self.notes = Notes()

    def stream(self, after: str) -> Iterator[Listed]:  # noqa: ARG002
        if not self.back:
            raise self.error
        yield Listed(Item(id="0", uri="", read="blob:x"), "1")

    def count(self) -> int:
        self.counts += 1
        self.go.wait()
        return 1

    def nothing_found(self) -> str:
        return "nothing"


def test_a_bucket_that_is_away_is_asked_less_and_less_and_counted_once(world: World) -> None:
    away = Away()
    planner = world.planner
    assert isinstance(planner, Hung)
    planner.source = away
    world.job_of({"type": "ours"}, "job")

    def openings(seconds: float) -> int:
        """How often the source is opened in this many seconds, with one round each second."""
        before = planner.opened
        for _ in range(int(seconds)):
            world.tick(seconds=1)
            world.planner._readers._patience_s = 30  # a round is over when its source has answered
        return planner.opened - before

    world.planner._readers._patience_s = 30
    assert openings(1) == 1
    assert [openings(64) for _ in range(3)] == [6, 1, 1]
    services.eventually(lambda: away.counts == 1, 30, "the estimate")
    away.back = True
    services.eventually(lambda: openings(60) and world.ledger.job("job").total, 30, "an image")
    away.go.set()
    waits_for_its_turn = world.planner._readers._estimators.submit(OWNER, "job", lambda: None)
    waits_for_its_turn.result(30)
    assert away.counts == 1


def test_a_job_whose_host_name_cannot_be_looked_up_now_waits(world: World) -> None:
    away = Away(LookUpsBusy())
    assert isinstance(world.planner, Hung)
    world.planner.source = away
    world.job_of({"type": "ours"}, "job")
    reason = services.eventually(lambda: world.waiting("job"), 30, "a reason")
    assert reason == "too many host names are being looked up and are not answered"
    world.job(3, "other")
    assert world.finish_one("other") == ["other-0", "other-1", "other-2"]
    away.back = True
    away.go.set()

    def listed() -> int:
        world.tick(seconds=2)
        return world.ledger.job("job").total

    services.eventually(listed, 30, "an image")


def test_many_jobs_are_estimated_by_a_few_threads(world: World) -> None:
    counting = Away()
    counting.back = True
    assert isinstance(world.planner, Hung)
    world.planner.source = counting
    for collection in "abcd":
        for n in range(20):
            world.job_of({"type": "ours"}, f"{collection}{n}", collection=collection)

    def counted(count: int) -> bool:
        world.tick()
        return counting.counts == count

    services.eventually(lambda: counted(readers.ESTIMATES), 30, "estimates")
    world.tick(5)
    assert counted(readers.ESTIMATES)
    counting.go.set()
    services.eventually(lambda: counted(80), 30, "all of them")
