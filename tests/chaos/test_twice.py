"""A command is carried out, its answer is lost, and it is sent again: nothing counts twice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from clipfleet.common.ledger import Claim, Item, NewJob, Outcome, Unknown
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.redis.client import make_redis
from clipfleet.common.settings import Settings
from support import chaos, services

CALL_S = 1.0
ITEMS = tuple(Item(id=f"/{n}.jpg", uri=f"/{n}.jpg", read=f"file:/{n}.jpg") for n in range(6))


@pytest.fixture
def client(tmp_path: Path) -> Iterator["redis.Redis"]:
    with services.valkey(tmp_path / "valkey") as url:
        settings = Settings(redis_url=url, call_timeout_s=CALL_S)
        with closing(make_redis(settings)) as client:
            yield client


@pytest.fixture
def ledger(client: "redis.Redis") -> RedisLedger:
    ledger = RedisLedger(client)
    ledger.create(new_job())
    return ledger


def new_job() -> NewJob:
    return NewJob(
        id="job", collection="c", generation="g", model="m", namespace="default", source={}
    )


def send_twice(client: "redis.Redis", call: Callable[[], Any]) -> None:
    """Let Valkey continue between the time-outs of two tries, so that both arrive."""
    (valkey,) = [  # a stack of other tests has one too, but as a grandchild
        child
        for child in psutil.Process().children()
        if "valkey-server" in " ".join(child.cmdline())
    ]
    scripts_run = executions(client)
    first = local_ports(client)
    with ThreadPoolExecutor(1) as pool:
        with chaos.stopped(valkey):
            answer = pool.submit(call)
            services.eventually(lambda: local_ports(client) - first, 30, "the second try")
        answer.result(30)
    assert executions(client) == scripts_run + 2


def local_ports(client: "redis.Redis") -> set[int]:
    """Return the local ports of this process' connections to Valkey."""
    port = client.get_connection_kwargs()["port"]
    return {
        line.laddr.port
        for line in psutil.Process().net_connections("tcp")
        if line.raddr and line.raddr.port == port and line.status == psutil.CONN_ESTABLISHED
    }


def executions(client: "redis.Redis") -> int:
    stats: Any = client.info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])


def test_a_chunk_is_planned_once(ledger: RedisLedger, client: "redis.Redis") -> None:
    lease = ledger.lease("job", "planner", 60)
    assert lease is not None
    send_twice(client, lambda: ledger.plan("job", lease.token, ITEMS, "", "cursor"))
    assert ledger.job("job").total == len(ITEMS)
    assert len(ledger.open_chunks("job")) == 1


def test_a_job_is_created_once(ledger: RedisLedger) -> None:
    """The second creation arrives when the job is running already."""
    lease = ledger.lease("job", "planner", 60)
    assert lease is not None
    ledger.plan("job", lease.token, ITEMS, "", "cursor")
    ledger.create(new_job())
    assert ledger.job("job").state == "running"
    assert ledger.job("job").total == len(ITEMS)


def test_a_chunk_is_counted_once(ledger: RedisLedger, client: "redis.Redis") -> None:
    claim = claimed(ledger)
    send_twice(client, lambda: ledger.mark(claim, Outcome(done=len(ITEMS))))
    assert ledger.job("job").done == len(ITEMS)


def test_the_rest_of_a_chunk_is_planned_once(ledger: RedisLedger, client: "redis.Redis") -> None:
    claim = claimed(ledger)
    send_twice(client, lambda: ledger.mark(claim, Outcome(done=4, rest=claim.items[4:])))
    assert ledger.job("job").done == 4
    assert [chunk.size for chunk in ledger.open_chunks("job")] == [2]


def test_a_chunk_handed_back_loses_one_attempt_at_most(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    claim = claimed(ledger)
    send_twice(client, lambda: ledger.release(claim, count_attempt=False))
    (chunk,) = ledger.open_chunks("job")
    assert (chunk.attempt, chunk.leased) == (0, False)


def test_a_chunk_is_split_once(ledger: RedisLedger) -> None:
    claim = claimed(ledger)
    ledger.release(claim, count_attempt=True)
    (chunk,) = ledger.open_chunks("job")
    assert [ledger.split("job", chunk), ledger.split("job", chunk)] == [True, False]
    assert [half.size for half in ledger.open_chunks("job")] == [3, 3]


def test_a_claim_whose_answer_was_lost_is_granted(
    ledger: RedisLedger, client: "redis.Redis"
) -> None:
    """Else its chunk waits until the lease runs out, and an attempt is lost."""
    plan(ledger)
    granted: list[Claim | Unknown | None] = []
    send_twice(client, lambda: granted.append(ledger.claim("m", "worker", 60, 2)))
    (claim,) = granted
    assert isinstance(claim, Claim)
    assert claim.attempt == 1
    assert [chunk.leased for chunk in ledger.open_chunks("job")] == [True, False]
    assert ledger.mark(claim, Outcome(done=len(claim.items)))


def plan(ledger: RedisLedger) -> None:
    """Plan two chunks."""
    lease = ledger.lease("job", "planner", 60)
    assert lease is not None
    ledger.plan("job", lease.token, ITEMS[:3], "", "half")
    ledger.plan("job", lease.token, ITEMS[3:], "half", "end")


def claimed(ledger: RedisLedger) -> Claim:
    """Plan a chunk of all items and claim it."""
    lease = ledger.lease("job", "planner", 60)
    assert lease is not None
    ledger.plan("job", lease.token, ITEMS, "", "cursor")
    claim = ledger.claim("m", "worker", 60, 2)
    assert isinstance(claim, Claim)
    return claim
