"""The circuit breaker: which servers it stops asking, and for how long."""

import pytest

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch import breaker
from clipfleet.common.fetch.breaker import Breaker
from support.ledgers import Clock

SERVER = "http://one.example"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_breaker(clock: Clock, timeouts: int = 3) -> Breaker:
    return Breaker(timeouts, 60, clock)


def is_asked(circuit: Breaker, server: str = SERVER) -> bool:
    try:
        circuit.check(server)
    except Unreadable:
        return False
    return True


def test_after_so_many_timeouts_in_a_row_a_server_is_left_alone_and_no_other(clock: Clock) -> None:
    circuit = new_breaker(clock)
    for _ in range(3):
        assert is_asked(circuit)
        circuit.timed_out(SERVER)
    assert not is_asked(circuit)
    assert is_asked(circuit, "http://two.example")


def test_an_answer_in_between_begins_the_count_anew(clock: Clock) -> None:
    circuit = new_breaker(clock)
    for _ in range(3):
        circuit.timed_out(SERVER)
        circuit.timed_out(SERVER)
        circuit.answered(SERVER)
    assert is_asked(circuit)


def test_the_reason_says_why_for_how_long_and_which_setting_changes_it(clock: Clock) -> None:
    circuit = new_breaker(clock)
    for _ in range(4):
        circuit.timed_out(SERVER)
    clock.now += 20
    with pytest.raises(Unreadable) as refused:
        circuit.check(SERVER)
    assert str(refused.value) == (
        "its server let 4 fetches in a row time out and is not asked for 40 s "
        "(CLIPFLEET_FETCH__BREAKER_S)"
    )


def test_then_one_fetch_at_a_time_tries_it_again(clock: Clock) -> None:
    circuit = new_breaker(clock)
    for _ in range(3):
        circuit.timed_out(SERVER)
    clock.now += 61
    assert [is_asked(circuit) for _ in range(3)] == [True, False, False]
    clock.now += 61
    assert [is_asked(circuit) for _ in range(3)] == [True, False, False]
    circuit.answered(SERVER)
    assert [is_asked(circuit) for _ in range(3)] == [True, True, True]


def test_a_probe_that_times_out_gives_the_server_another_rest(clock: Clock) -> None:
    circuit = new_breaker(clock)
    for _ in range(3):
        circuit.timed_out(SERVER)
    clock.now += 61
    assert is_asked(circuit)
    clock.now += 50
    circuit.timed_out(SERVER)
    clock.now += 50
    assert not is_asked(circuit)
    clock.now += 11
    assert is_asked(circuit)


def test_it_can_be_switched_off(clock: Clock) -> None:
    circuit = new_breaker(clock, timeouts=0)
    for _ in range(100):
        circuit.timed_out(SERVER)
    assert is_asked(circuit)


def test_it_remembers_no_more_servers_than_it_may(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "MAX_SERVERS", 2)
    circuit = new_breaker(clock, timeouts=1)
    for number in range(3):
        circuit.timed_out(f"http://{number}.example")
    assert [is_asked(circuit, f"http://{number}.example") for number in range(3)] == [
        True, False, False,
    ]  # fmt: skip
