"""The order in which jobs get a fair lock."""

import threading

from clipfleet.workers.ingest.fair_lock import FairLock
from support.services import eventually


def test_a_job_with_many_threads_gets_no_more_turns_than_one_with_a_single_one() -> None:
    lock, order = FairLock(), list[str]()
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


def test_one_holds_it_at_a_time_and_an_error_gives_it_back() -> None:
    lock, inside, peak = FairLock(), [0], [0]

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
    assert peak[0] == 1
    try:
        with lock.turn("a"):
            raise KeyError
    except KeyError:
        pass
    with lock.turn("b"):
        pass


def test_it_does_not_remember_every_job_for_ever() -> None:
    lock = FairLock()
    for n in range(1_000):
        with lock.turn(str(n)):
            pass
    assert len(lock._last_turns) <= 101
