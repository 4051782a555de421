"""Look-ups of host names that nobody answers delay and fail nobody else's fetches."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch import Cancellation, LookUpsBusy
from clipfleet.common.fetch.look_ups import LookUps
from clipfleet.common.shares import Owner
from support.fetching import LIMIT, fetcher
from support.services import eventually
from support.webserver import body, site


class Names:
    """A look-up that answers 127.0.0.1, for names that begin with "bad" not before `over`."""

    def __init__(self) -> None:
        self.over, self.seen = threading.Event(), list[str]()

    def __call__(self, host: str, port: int) -> list[str]:  # noqa: ARG002
        self.seen.append(host)
        if host.startswith("bad"):
            assert self.over.wait(60)
        return ["127.0.0.1"]

    def hanging(self, count: int) -> None:
        """Wait until so many look-ups hang."""
        eventually(lambda: len(self.seen) >= count, 30, f"{count} look-ups")


@pytest.fixture
def names() -> Iterator[Names]:
    created = Names()
    yield created
    created.over.set()


def hang(look_ups: LookUps, owner: str, count: int, first: int = 0, key: str = "") -> int:
    """Begin look-ups of names that nobody answers; return how many may begin."""
    begun = 0
    for n in range(first, first + count):
        try:
            look_ups.addresses(f"bad-{owner}-{n}", 80, Owner(key, owner), 0)
        except TimeoutError:
            begun += 1
        except LookUpsBusy:
            break
    return begun


def in_background(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    return thread


def test_a_job_of_names_that_nobody_answers_fails_no_good_url_of_another_job(
    names: Names,
) -> None:
    """The good fetch has less time than the look-ups of the others take."""
    settings: dict[str, Any] = {"connect_s": 5, "total_s": 5, "tries": 1}
    with site({"/": body(b"x")}) as there, fetcher(look_up=names, **settings) as fetch:

        def bad(n: int) -> None:
            with Cancellation(Owner(name="bad")).scope(), suppress(Unreadable, LookUpsBusy):
                fetch.get(f"http://bad-{n}:{there.port}/", LIMIT)

        threads = [in_background(lambda n=n: bad(n)) for n in range(40)]  # type: ignore[misc]
        names.hanging(40)
        with Cancellation(Owner(name="good")).scope():
            assert fetch.get(f"http://good:{there.port}/", LIMIT) == b"x"
            assert fetch.get(f"http://127.0.0.1:{there.port}/", LIMIT) == b"x"
        names.over.set()
        for thread in threads:
            thread.join(30)


def test_several_jobs_of_such_names_leave_look_ups_to_others(names: Names) -> None:
    look_ups = LookUps(names, 16)
    assert [hang(look_ups, owner, 20) for owner in "abc"] == [8, 4, 2]
    assert look_ups.addresses("good", 80, Owner(name="d"), 30) == ["127.0.0.1"]


def test_however_many_jobs_a_key_has_it_leaves_look_ups_to_other_keys(names: Names) -> None:
    look_ups = LookUps(names, 16)
    begun = [hang(look_ups, f"job-{n}", 20, key="many") for n in range(20)]
    assert begun == [6, 2, *[0] * 18]
    assert look_ups.addresses("good", 80, Owner("other", "job"), 30) == ["127.0.0.1"]


def test_an_address_is_not_looked_up(names: Names) -> None:
    look_ups = LookUps(names, 1)
    assert hang(look_ups, "a", 2) == 1
    with pytest.raises(LookUpsBusy, match="host names"):
        look_ups.addresses("good", 80, Owner(name="b"), 30)
    assert look_ups.addresses("127.0.0.5", 80, Owner(name="b"), 30) == ["127.0.0.5"]
    assert look_ups.addresses("2130706433", 80, Owner(name="b"), 30) == ["127.0.0.1"]
    assert look_ups.addresses("::1", 80, Owner(name="b"), 30) == ["::1"]
    assert names.seen == ["bad-a-0"]


def test_a_name_is_looked_up_once_at_a_time_and_again_later(names: Names) -> None:
    look_ups = LookUps(names, 16)
    for owner in ("a", "b"):
        with pytest.raises(TimeoutError):
            look_ups.addresses("bad", 80, Owner(name=owner), 0)
    names.hanging(1)
    assert names.seen == ["bad"]
    names.over.set()
    assert look_ups.addresses("bad", 80, Owner(name="a"), 30) == ["127.0.0.1"]
    before = len(names.seen)
    assert look_ups.addresses("bad", 80, Owner(name="a"), 30) == ["127.0.0.1"]
    assert len(names.seen) == before + 1


def test_a_slot_is_free_again_when_the_look_up_ends(names: Names) -> None:
    look_ups = LookUps(names, 4)
    assert hang(look_ups, "a", 9) == 2
    names.over.set()
    eventually(lambda: hang(look_ups, "a", 1, first=9), 30, "a free slot")


def test_nobody_waits_for_a_look_up_at_the_end() -> None:
    daemons: list[bool] = []

    def look_up(host: str, port: int) -> list[str]:  # noqa: ARG001
        daemons.append(threading.current_thread().daemon)
        return ["127.0.0.1"]

    LookUps(look_up, 1).addresses("good", 80, Owner(name="a"), 30)
    assert daemons == [True]
