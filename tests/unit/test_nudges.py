"""Messages that tell workers of pending chunks: no more than there are workers; none counts."""

import pytest

from clipfleet.common.queue.broker import BrokerUnavailable, MemoryPublisher
from clipfleet.common.queue.messages import IngestNudge
from clipfleet.workers.ingest.claims import pass_on
from clipfleet.workers.planner.chunk_size import FIRST_CHUNK
from clipfleet.workers.planner.planner import TOP_UP_INTERVAL_S
from support.ledgers import LEASE_S, MODEL
from support.worker_harness import Planning


@pytest.fixture
def world() -> Planning:
    return Planning()


def send(world: Planning, count: int, model: str = MODEL) -> None:
    for _ in range(count):
        world.publisher.publish(IngestNudge(model=model))


def take_nudge(world: Planning) -> list[str]:
    """A worker takes a message and works on a chunk, if there is one; the ids of its images."""
    world.publisher.sent.pop(0)
    return world.serve() if world.pending() else []


@pytest.mark.parametrize("workers", [1, 3])
def test_the_queue_never_holds_more_nudges_than_there_are_workers(
    world: Planning, workers: int
) -> None:
    for n in range(workers):
        world.worker(name=f"w{n}")
    world.job(10_000, "one")
    world.job(10_000, "two")
    for _ in range(50):
        world.tick(seconds=1)
        assert world.nudges() == min(workers, world.pending())


def test_there_are_no_more_nudges_than_chunks(world: Planning) -> None:
    for n in range(5):
        world.worker(name=f"w{n}")
    world.job(40)
    world.tick(5)
    assert len(world.names()) == 2
    assert world.nudges() == 2


def test_without_workers_there_are_no_nudges_until_one_comes(world: Planning) -> None:
    world.job(10_000)
    world.tick(50, seconds=60)
    assert world.pending() == 4
    assert world.nudges() == 0
    world.worker()
    world.tick()
    assert world.nudges() == 1


def test_the_queue_does_not_grow_after_the_last_worker_died(world: Planning) -> None:
    world.worker()
    world.job(20)
    world.tick(2)
    world.take()
    world.fleet.deregister("w")
    world.tick(30, seconds=LEASE_S)
    assert world.pending() == 1
    assert world.nudges() == 1, "the one from before"


def test_nudges_alone_lead_workers_through_a_job(world: Planning) -> None:
    world.worker()
    world.job(150)
    seen: list[str] = []
    while world.ledger.job("job").finished_at is None:
        world.tick(seconds=TOP_UP_INTERVAL_S)
        while world.publisher.sent:
            seen += take_nudge(world)
    assert seen == [f"job-{n}" for n in range(150)]


def test_a_job_is_exact_although_every_second_nudge_is_lost(world: Planning) -> None:
    world.worker()
    world.job(150)
    seen: list[str] = []
    for turn in range(100):
        world.tick(seconds=TOP_UP_INTERVAL_S)
        if turn % 2:
            world.publisher.sent.clear()
        while world.publisher.sent:
            seen += take_nudge(world)
    assert seen == [f"job-{n}" for n in range(150)]
    assert world.ledger.job("job").state == "succeeded"


def test_doubled_and_stale_nudges_change_nothing(world: Planning) -> None:
    world.worker()
    world.job(150)
    seen: list[str] = []
    for _ in range(20):
        send(world, 5)
        world.tick()
        assert world.nudges() == 5, "the planner adds none"
        while world.publisher.sent:
            seen += take_nudge(world)
    job = world.ledger.job("job")
    assert seen == [f"job-{n}" for n in range(150)]
    assert (job.state, job.done, job.total) == ("succeeded", 150, 150)
    send(world, 5)
    assert take_nudge(world) == []
    assert world.ledger.job("job") == job


def test_nudges_of_another_model_are_not_counted(world: Planning) -> None:
    world.worker()
    world.job(20)
    send(world, 7, "another model")
    world.tick()
    assert world.publisher.waiting(IngestNudge(model=MODEL).queue) == 1


def test_a_nudge_that_a_worker_took_just_now_is_not_replaced(world: Planning) -> None:
    """It claims its chunk in a moment. Only if it does not, another worker is nudged."""
    world.worker()
    world.job(20)
    world.tick()
    world.publisher.sent.clear()
    world.tick(5)
    assert world.nudges() == 0
    world.tick(seconds=TOP_UP_INTERVAL_S)
    assert world.nudges() == 1


def test_new_chunks_call_as_many_workers_at_once(world: Planning) -> None:
    for n in range(4):
        world.worker(name=f"w{n}")
    world.job(10_000)
    for _ in range(3):
        world.tick()
        assert world.nudges() == 4


def test_a_chunk_pending_again_is_announced_again(world: Planning) -> None:
    world.worker()
    world.job(20)
    world.tick(2)
    world.publisher.sent.clear()
    world.take()
    world.tick(3, seconds=TOP_UP_INTERVAL_S)
    assert world.nudges() == 0, "its holder may live"
    world.tick(seconds=LEASE_S + 1)
    assert world.nudges() == 1


def test_two_planners_together_do_not_fill_the_queue_twice(world: Planning) -> None:
    world.worker()
    world.job(1_000, "one")
    world.tick(3)
    world.job(1_000, "two")
    world.tick(3, planner=world.new_planner("two"))
    assert world.nudges() == 1


def test_a_worker_passes_a_nudge_on_while_more_chunks_are_pending(world: Planning) -> None:
    world.worker()
    world.job(3 * FIRST_CHUNK)
    world.tick(4)
    claimed, passed = pass_on(world.publisher, MODEL), []
    for _ in range(3):
        world.publisher.sent.clear()
        claimed(world.take())
        passed.append(world.nudges())
    assert passed == [1, 1, 0], "the last chunk leaves none"


def test_a_worker_passes_no_nudge_on_beside_one_that_waits(world: Planning) -> None:
    world.worker()
    world.job(3 * FIRST_CHUNK)
    world.tick(4)
    assert world.nudges() == 1
    pass_on(world.publisher, MODEL)(world.take())
    assert world.nudges() == 1


def test_a_queue_that_is_away_does_not_hold_up_the_work(world: Planning) -> None:
    class Away(MemoryPublisher):
        def waiting(self, queue: str) -> int:
            raise BrokerUnavailable(f"{queue} is away")

    world.job(3 * FIRST_CHUNK)
    world.tick(4)
    pass_on(Away(), MODEL)(world.take())
