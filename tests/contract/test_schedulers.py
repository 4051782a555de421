"""Several schedulers share a registry in Redis, and start each run once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from clipfleet.api.sources.scheduler import Scheduler
from clipfleet.common.ledger.registered import RedisRegistry
from support.ledgers import Clock
from support.scheduling import Scheduling

SOURCES, SCHEDULERS = 12, 4


@pytest.fixture
def scheduling(tmp_path: Path, client: "redis.Redis") -> Scheduling:
    clock = Clock()
    return Scheduling(tmp_path, clock=clock, registry=RedisRegistry(client, clock))


def at_once(scheduling: Scheduling) -> None:
    """Run rounds of several schedulers at the same time, each of which takes what is due."""
    state = scheduling.world.app.state
    schedulers = [Scheduler(state.gateway, state.access) for _ in range(SCHEDULERS)]
    with ThreadPoolExecutor(SCHEDULERS) as threads:
        list(threads.map(lambda scheduler: scheduler.round(), schedulers))


def look_at_once(scheduling: Scheduling, name: str) -> None:
    """Let several schedulers look at one source at the same time, as after a hold that is over."""
    state = scheduling.world.app.state
    schedulers = [Scheduler(state.gateway, state.access) for _ in range(SCHEDULERS)]
    with ThreadPoolExecutor(SCHEDULERS) as threads:
        list(threads.map(lambda scheduler: scheduler.look("acme", name), schedulers))


def test_each_due_source_runs_once(scheduling: Scheduling) -> None:
    for number in range(SOURCES):
        scheduling.put(f"s{number}", interval=60, namespace=f"n{number}")
    for run in range(1, 4):
        at_once(scheduling)
        jobs = scheduling.jobs()
        assert len(jobs) == run * SOURCES
        assert len({job.new.namespace for job in jobs[-SOURCES:]}) == SOURCES
        for job in jobs[-SOURCES:]:
            scheduling.end(job.id)
        scheduling.clock.now += 60


def test_schedulers_that_look_at_one_source_start_one_run(scheduling: Scheduling) -> None:
    for number in range(SOURCES):
        scheduling.put(f"s{number}", interval=60)
        look_at_once(scheduling, f"s{number}")
        assert len(scheduling.jobs()) == number + 1


def test_keys_are_in_one_job(scheduling: Scheduling) -> None:
    scheduling.put()
    for number in range(SOURCES):
        scheduling.registry.add_keys("acme", "s", [f"{number}.jpg"], 1_000)
        scheduling.clock.now += 5
        look_at_once(scheduling, "s")
        scheduling.end()
    keys = [
        key for job in scheduling.jobs() for key in scheduling.ledger.whole(job.id).source["keys"]
    ]
    assert sorted(keys) == sorted(f"{number}.jpg" for number in range(SOURCES))
