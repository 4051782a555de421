"""The fetch pool: the order of reads over the network, and the number of threads."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from functools import partial
from typing import Any

import pytest

from clipfleet.workers.ingest import fetch_pool
from clipfleet.workers.ingest.fetch_pool import FetchPool
from support.services import eventually


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
    slow = [pool.submit("job", "slow", calls("slow")) for _ in range(100)]
    fast = pool.submit("job", "fast", lambda: "fast")
    assert fast.result(30) == "fast"
    assert calls.begun(3) == ["slow"] * 3
    assert pool.threads <= 4
    calls.go.set()
    assert [each.result(30) for each in slow] == ["slow"] * 100
    assert len(calls.running) == 100


def test_a_call_may_bring_its_servers_limit(calls: Calls) -> None:
    pool = FetchPool(threads=40, per_server=1)
    for _ in range(9):
        pool.submit("job", "bucket", calls("a"), 5)
    other = pool.submit("job", "other", lambda: "b")
    other.result(30)
    assert calls.begun(5) == ["a"] * 5


def test_a_job_leaves_half_of_the_threads_to_others(calls: Calls) -> None:
    pool = FetchPool(threads=4, per_server=1)
    for n in range(10):
        pool.submit("greedy", f"host-{n}", calls("greedy"))
    calls.begun(2)
    results = [pool.submit("modest", f"host-{n}", lambda: None) for n in range(20, 40)]
    assert len(wait(results, 30).done) == 20
    assert calls.running == ["greedy"] * 2


def test_several_jobs_that_hang_leave_threads_to_others(calls: Calls) -> None:
    pool = FetchPool(threads=16, per_server=1)
    for job in range(3):
        for n in range(20):
            pool.submit(f"greedy-{job}", f"host-{job}-{n}", calls(f"greedy-{job}"))
        calls.begun(sum((8, 4, 2)[: job + 1]))
    results = [pool.submit("modest", f"host-{n}", lambda: None) for n in range(20)]
    assert len(wait(results, 30).done) == 20
    assert Counter(calls.running) == {"greedy-0": 8, "greedy-1": 4, "greedy-2": 2}


def test_jobs_take_turns_and_so_do_the_servers_of_a_job(calls: Calls) -> None:
    pool = FetchPool(threads=1, per_server=1)
    first = pool.submit("before", "x", calls("before"))
    calls.begun(1)
    order: list[str] = []
    results = [
        pool.submit(job, server, partial(order.append, f"{job}/{server}"))
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
    running, waiting, last = (pool.submit("job", "host", calls(name)) for name in "abc")
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
        pool.submit("job", "host", broken).result(30)
    assert pool.submit("job", "host", lambda: 1).result(30) == 1


def test_threads_that_have_nothing_to_do_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_pool, "IDLE_S", 0.05)
    pool = FetchPool(threads=20, per_server=20)
    assert len(wait([pool.submit("a", "s", lambda: None) for _ in range(20)], 30).done) == 20
    eventually(lambda: pool.threads == 0, 30, "the end of the threads")
    assert pool.submit("a", "s", lambda: 1).result(30) == 1


def test_nobody_waits_for_its_threads_at_the_end() -> None:
    pool = FetchPool(threads=2)
    daemons: list[bool] = []
    pool.submit("a", "s", lambda: daemons.append(threading.current_thread().daemon)).result(30)
    assert daemons == [True]
