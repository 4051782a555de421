"""The fetch pool: the order of reads over the network, and the number of threads."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from functools import partial
from typing import Any

import pytest

from clipfleet.common.shares import Owner
from clipfleet.workers.ingest import fetch_pool
from clipfleet.workers.ingest.fetch_pool import FetchPool
from support.services import eventually

JOB = Owner(name="job")


class Calls:
    """Calls that hang until `go` is set. `running` holds the names of the calls that began, in
    order."""

    def __init__(self) -> None:
        self.go, self.running = threading.Event(), list[str]()

    def __call__(self, name: str) -> Any:
        def call() -> str:
            self.running.append(name)
            assert self.go.wait(60)
            return name

        return call

    def begun(self, count: int) -> list[str]:
        eventually(lambda: len(self.running) >= count, 30, f"{count} calls")
        return list(self.running)


@pytest.fixture
def calls() -> Iterator[Calls]:
    hanging = Calls()
    yield hanging
    hanging.go.set()


def test_a_server_has_so_many_calls_at_once_and_others_go_on(calls: Calls) -> None:
    pool = FetchPool(threads=40, per_server=3)
    slow = [pool.submit(JOB, "slow", calls("slow")) for _ in range(100)]
    fast = pool.submit(JOB, "fast", lambda: "fast")
    assert fast.result(30) == "fast"
    assert calls.begun(3) == ["slow"] * 3
    assert pool.threads <= 4
    calls.go.set()
    assert [each.result(30) for each in slow] == ["slow"] * 100
    assert len(calls.running) == 100


def test_a_call_may_bring_its_servers_limit(calls: Calls) -> None:
    pool = FetchPool(threads=40, per_server=1)
    for _ in range(9):
        pool.submit(JOB, "bucket", calls("a"), 5)
    other = pool.submit(JOB, "other", lambda: "b")
    other.result(30)
    assert calls.begun(5) == ["a"] * 5


def test_a_job_leaves_half_of_the_threads_to_others(calls: Calls) -> None:
    pool = FetchPool(threads=4, per_server=1)
    for n in range(10):
        pool.submit(Owner(name="greedy"), f"host-{n}", calls("greedy"))
    calls.begun(2)
    results = [pool.submit(Owner(name="modest"), f"host-{n}", lambda: None) for n in range(20, 40)]
    assert len(wait(results, 30).done) == 20
    assert calls.running == ["greedy"] * 2


def test_several_jobs_that_hang_leave_threads_to_others(calls: Calls) -> None:
    pool = FetchPool(threads=16, per_server=1)
    for job in range(3):
        for n in range(20):
            pool.submit(Owner(name=f"greedy-{job}"), f"host-{job}-{n}", calls(f"greedy-{job}"))
        calls.begun(sum((8, 4, 2)[: job + 1]))
    results = [pool.submit(Owner(name="modest"), f"host-{n}", lambda: None) for n in range(20)]
    assert len(wait(results, 30).done) == 20
    assert Counter(calls.running) == {"greedy-0": 8, "greedy-1": 4, "greedy-2": 2}


def test_a_key_with_many_jobs_that_hang_leaves_threads_to_another_key(calls: Calls) -> None:
    pool = FetchPool(threads=64, per_server=1)
    for job in range(20):
        for n in range(40):
            owner = Owner("greedy", f"job-{job}")
            pool.submit(owner, f"host-{job}-{n}", calls(owner.name))
    assert Counter(calls.begun(32)) == {"job-0": 24, "job-1": 6, "job-2": 2}
    modest = [pool.submit(Owner("modest", "job"), f"host-{n}", calls("modest")) for n in range(40)]
    calls.begun(32 + 12)
    assert Counter(calls.running)["modest"] == 12
    pool.submit(Owner("third", "job"), "host", lambda: None).result(30)
    assert len(calls.running) == 32 + 12
    calls.go.set()
    assert len(wait(modest, 30).done) == 40


def test_keys_take_turns_whatever_the_number_of_their_jobs(calls: Calls) -> None:
    pool = FetchPool(threads=1, per_server=1)
    first = pool.submit(Owner("before"), "x", calls("before"))
    calls.begun(1)
    order: list[str] = []
    owners = [*(Owner("many", str(n)) for n in range(4)), Owner("one", "0"), Owner("one", "0")]
    results = [
        pool.submit(owner, "s", partial(order.append, f"{owner.key}-{owner.name}"))
        for owner in owners
    ]
    calls.go.set()
    first.result(30)
    assert len(wait(results, 30).done) == 6
    assert order == ["many-0", "one-0", "many-1", "one-0", "many-2", "many-3"]


def test_jobs_take_turns_and_so_do_the_servers_of_a_job(calls: Calls) -> None:
    pool = FetchPool(threads=1, per_server=1)
    first = pool.submit(Owner(name="before"), "x", calls("before"))
    calls.begun(1)
    order: list[str] = []
    results = [
        pool.submit(Owner(name=job), server, partial(order.append, f"{job}/{server}"))
        for job in ("a", "b")
        for server in ("s", "s", "t")
    ]
    assert not wait(results, 0).done
    calls.go.set()
    first.result(30)
    assert len(wait(results, 30).done) == 6
    assert order == ["a/s", "b/s", "a/t", "b/t", "a/s", "b/s"]


def test_a_call_that_waits_can_be_cancelled_and_one_that_runs_cannot(calls: Calls) -> None:
    pool = FetchPool(threads=4, per_server=1)
    running, waiting, last = (pool.submit(JOB, "host", calls(name)) for name in "abc")
    calls.begun(1)
    assert waiting.cancel()
    assert not running.cancel()
    calls.go.set()
    assert last.result(30) == "c"
    assert calls.running == ["a", "c"]


def test_an_error_comes_out_and_the_pool_goes_on() -> None:
    pool = FetchPool(threads=2, per_server=1)

    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        pool.submit(JOB, "host", broken).result(30)
    assert pool.submit(JOB, "host", lambda: 1).result(30) == 1


def test_threads_that_have_nothing_to_do_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_pool, "IDLE_S", 0.05)
    pool = FetchPool(threads=20, per_server=20)
    assert len(wait([pool.submit(JOB, "s", lambda: None) for _ in range(20)], 30).done) == 20
    eventually(lambda: pool.threads == 0, 30, "the end of the threads")
    assert pool.submit(JOB, "s", lambda: 1).result(30) == 1


def test_nobody_waits_for_its_threads_at_the_end() -> None:
    pool = FetchPool(threads=2)
    daemons: list[bool] = []
    pool.submit(JOB, "s", lambda: daemons.append(threading.current_thread().daemon)).result(30)
    assert daemons == [True]
