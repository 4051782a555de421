"""The order in which jobs get turns at the device."""

import threading

import pytest

from clipfleet.common.shares import Owner
from clipfleet.workers.ingest.device import Device
from support.services import eventually


def test_a_job_with_many_threads_gets_no_more_turns_than_one_with_a_single_one() -> None:
    lock, order = Device(1), list[str]()
    threads = []

    def take(key: str) -> None:
        with lock.turn(Owner(name=key)):
            order.append(key)

    with lock.turn(Owner(name="holder")):
        for key in ["many"] * 4 + ["single"] * 2:
            threads.append(threading.Thread(target=take, args=(key,)))
            threads[-1].start()
        eventually(lambda: sum(lock._waiting.values()) == 6, 30, "six that wait")
    for thread in threads:
        thread.join(30)
    assert order == ["many", "single"] * 2 + ["many"] * 2


def test_a_key_with_many_jobs_gets_no_more_turns_than_one_with_a_single_one() -> None:
    lock, order = Device(1), list[str]()
    threads = []

    def take(owner: Owner) -> None:
        with lock.turn(owner):
            order.append(owner.key)

    with lock.turn(Owner("holder")):
        for owner in [*(Owner("many", str(n)) for n in range(4)), *[Owner("one", "0")] * 2]:
            threads.append(threading.Thread(target=take, args=(owner,)))
            threads[-1].start()
        eventually(lambda: sum(lock._waiting.values()) == 6, 30, "six that wait")
    for thread in threads:
        thread.join(30)
    assert order == ["many", "one"] * 2 + ["many"] * 2


@pytest.mark.parametrize("turns", [1, 2])
def test_no_more_than_its_turns_are_held_at_once_and_an_error_gives_it_back(turns: int) -> None:
    lock, inside, peak = Device(turns), [0], [0]

    def work(key: str) -> None:
        for _ in range(200):
            with lock.turn(Owner(name=key)):
                inside[0] += 1
                peak[0] = max(peak[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(f"{n % 3}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 1 <= peak[0] <= turns
    try:
        with lock.turn(Owner(name="a")):
            raise KeyError
    except KeyError:
        pass
    with lock.turn(Owner(name="b")):
        pass


def test_it_does_not_remember_every_job_for_ever() -> None:
    lock = Device(1)
    for n in range(1_000):
        with lock.turn(Owner(name=str(n))):
            pass
    assert len(lock._last_turns) <= 101
