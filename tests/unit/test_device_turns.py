"""The order in which jobs get turns at the device."""

import threading

import pytest

from clipfleet.workers.ingest.device import Device
from support.services import eventually


def test_a_job_with_many_threads_gets_no_more_turns_than_one_with_a_single_one() -> None:
    lock, order = Device(1), list[str]()
    threads = []

    def take(key: str) -> None:
        with lock.turn(key):
            order.append(key)

    with lock.turn("holder"):
        for key in ["many"] * 4 + ["single"] * 2:
            threads.append(threading.Thread(target=take, args=(key,)))
            threads[-1].start()
        eventually(lambda: sum(lock._waiting.values()) == 6, 30, "six that wait")
    for thread in threads:
        thread.join(30)
    assert order == ["many", "single"] * 2 + ["many"] * 2


@pytest.mark.parametrize("turns", [1, 2])
def test_no_more_than_its_turns_are_held_at_once_and_an_error_gives_it_back(turns: int) -> None:
    lock, inside, peak = Device(turns), [0], [0]

    def work(key: str) -> None:
        for _ in range(200):
            with lock.turn(key):
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
        with lock.turn("a"):
            raise KeyError
    except KeyError:
        pass
    with lock.turn("b"):
        pass


def test_it_does_not_remember_every_job_for_ever() -> None:
    lock = Device(1)
    for n in range(1_000):
        with lock.turn(str(n)):
            pass
    assert len(lock._last_turns) <= 101
