"""What is safe to send again is sent again, and nothing else. Over real sockets."""

import socket
import threading
from collections.abc import Callable
from email.utils import formatdate
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipfleet import ProblemError, Unreachable
from clipfleet.client._retries import MAX_DELAY_S, poll_intervals_s, retry_delay_s
from support.clients import HANG_UP, Answer, client_class, in_turn, job, service

__all__ = ["client_class"]

PROBLEM = {"type": "urn:problem:clipfleet:unavailable", "title": "t", "detail": "the store is away"}
BUSY = Answer(PROBLEM, 503, {"Retry-After": "0"})


@pytest.mark.parametrize("when", ["0", formatdate(0, usegmt=True)])
def test_a_service_that_says_when_to_come_back_is_asked_again_then(
    client_class: Any, when: str
) -> None:
    busy = Answer(PROBLEM, 503, {"Retry-After": when})
    with service(in_turn(busy, Answer({"jobs": []}))) as there, client_class(there.url) as client:
        assert client.jobs() == []
    assert len(there.seen) == 2


def test_it_is_asked_four_times_and_then_believed(client_class: Any) -> None:
    with (
        service(lambda _: BUSY) as there,
        client_class(there.url) as client,
        pytest.raises(ProblemError) as caught,
    ):
        client.search(text="a dog")
    assert len(there.seen) == 4
    assert (caught.value.status, caught.value.slug) == (503, "unavailable")
    assert str(caught.value) == "the store is away"
    assert caught.value.problem == PROBLEM


def test_without_retries_it_is_asked_once(client_class: Any) -> None:
    with (
        service(lambda _: BUSY) as there,
        client_class(there.url, retries=0) as client,
        pytest.raises(ProblemError),
    ):
        client.jobs()
    assert len(there.seen) == 1


@pytest.mark.parametrize("status", [404, 409, 422, 500])
def test_another_refusal_is_final(client_class: Any, status: int) -> None:
    refusal = Answer(PROBLEM, status, {"Retry-After": "0"})
    with (
        service(lambda _: refusal) as there,
        client_class(there.url) as client,
        pytest.raises(ProblemError),
    ):
        client.jobs()
    assert len(there.seen) == 1


def test_a_refused_connection_is_tried_again(client_class: Any) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        timer = threading.Timer(0.3, _answer_once, [taken])
        timer.start()
        with client_class(f"http://127.0.0.1:{port}", retries=8) as client:
            assert client.jobs() == []
        timer.join()


def _answer_once(listener: socket.socket) -> None:
    listener.listen()
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"jobs":[]}')


def test_where_nobody_listens_nobody_is_reached(client_class: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            client_class(url) as client,
            pytest.raises(Unreachable, match=f"answers at {url}"),
        ):
            client.jobs()


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda client: client.jobs(), {"jobs": []}),
        (lambda client: client.search(text="a dog"), {"matches": [], "took_ms": 1}),
        (lambda client: client.upsert("images", [{"id": "a", "values": [1]}]), {"upserted": 1}),
    ],
)
def test_what_may_happen_twice_survives_a_broken_connection(
    client_class: Any, ask: Callable[[Any], Any], answer: Any
) -> None:
    with service(in_turn(HANG_UP, Answer(answer))) as there, client_class(there.url) as client:
        ask(client)
    assert len(there.seen) == 2


def test_index_is_told_again_under_the_same_key_so_there_is_one_job(client_class: Any) -> None:
    with service(in_turn(HANG_UP, BUSY, Answer(job()))) as there, client_class(there.url) as client:
        assert client.index("images", "/photos", create=False).id == "j1"
    (key,) = {seen.headers["idempotency-key"] for seen in there.seen}
    assert (len(there.seen), len(key)) == (3, 32)


def test_two_calls_of_index_are_two_jobs(client_class: Any) -> None:
    with service(lambda _: Answer(job())) as there, client_class(there.url) as client:
        client.index("images", "/photos", create=False)
        client.index("images", "/photos", create=False)
    assert len({seen.headers["idempotency-key"] for seen in there.seen}) == 2


def test_an_upload_and_a_retry_are_told_again_under_the_same_key(
    client_class: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 100)
    answers = in_turn(HANG_UP, Answer(job()), HANG_UP, Answer(job()))
    with service(answers) as there, client_class(there.url) as client:
        client.upload("images", tmp_path / "a.jpg", create=False)
        client.retry("j0")
    first, again, retry, retry_again = (seen.headers["idempotency-key"] for seen in there.seen)
    assert first == again != retry == retry_again
    assert b"x" * 100 in there.seen[1].body


def test_a_key_of_the_callers_own_is_sent_as_it_is(client_class: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with service(lambda _: Answer(job())) as there, client_class(there.url) as client:
        client.upload("images", tmp_path / "a.jpg", create=False, idempotency_key="mine")
        client.index("images", tmp_path, create=False, idempotency_key="mine, too")
    assert [seen.headers["idempotency-key"] for seen in there.seen] == ["mine", "mine, too"]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("delete_collection", ["c"]), ("delete_image", ["c", "a.jpg"]), ("delete_job", ["j"])],
)
def test_what_may_not_happen_twice_is_not_sent_again_blindly(
    client_class: Any, method: str, arguments: list[str]
) -> None:
    with (
        service(lambda _: HANG_UP) as there,
        client_class(there.url) as client,
        pytest.raises(Unreachable),
    ):
        getattr(client, method)(*arguments)
    assert len(there.seen) == 1


def test_an_upload_that_was_put_off_is_sent_whole_again(client_class: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 200_000)
    with service(in_turn(BUSY, Answer(job()))) as there, client_class(there.url) as client:
        client.upload("images", tmp_path / "a.jpg", create=False)
    first, second = there.seen
    assert b"x" * 200_000 in second.body
    assert first.size == second.size


def test_something_else_at_the_address_is_not_taken_for_clipfleet(client_class: Any) -> None:
    with (
        service(lambda _: Answer({"hello": "world"})) as there,
        client_class(there.url) as client,
        pytest.raises(Unreachable, match="no clipfleet of this version"),
    ):
        client.jobs()


@pytest.mark.parametrize(
    ("status", "header", "pause"),
    [
        (503, {"Retry-After": "7"}, 7),
        (429, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": str(int(MAX_DELAY_S) + 1)}, None),
        (503, {"Retry-After": "soon"}, None),
        (503, {"Retry-After": "-1"}, None),
        (503, {}, None),
        (500, {"Retry-After": "7"}, None),
        (200, {"Retry-After": "7"}, None),
    ],
)
def test_how_long_the_service_asks_us_to_wait(
    status: int, header: dict[str, str], pause: float | None
) -> None:
    assert retry_delay_s(httpx.Response(status, headers=header), 0, repeatable=True) == pause


def test_a_slow_service_is_not_asked_again() -> None:
    assert retry_delay_s(httpx.ReadTimeout("slow"), 0, repeatable=True) is None


def test_pauses_grow_and_have_an_end() -> None:
    pauses = [
        retry_delay_s(httpx.ConnectError("refused"), n, repeatable=False) for n in (0, 1, 2, 99)
    ]
    assert pauses == [0.1, 0.2, 0.4, MAX_DELAY_S]


@pytest.mark.parametrize("every_s", [0.01, 0.3, 5.0])
def test_a_job_is_looked_at_soon_and_then_at_the_interval(every_s: float) -> None:
    pauses = list(islice(poll_intervals_s(every_s), 2_000))
    assert pauses[0] == min(0.05, every_s)
    assert pauses == sorted(pauses)
    assert pauses[-1] == every_s
