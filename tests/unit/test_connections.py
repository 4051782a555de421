"""Slow and idle connections, to a real server in this process."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import httpx
import pytest

from clipfleet.testing import MemoryService
from support.services import eventually

ASK = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MAX_CONNECTIONS = 8
BRIEF = {"header_s": 0.2, "send_s": 0.5, "body_s": 0.2, "connections": MAX_CONNECTIONS}


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService(limits=BRIEF) as running:
        yield running


def connected(service: MemoryService) -> socket.socket:
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def answers(line: socket.socket) -> bool:
    line.sendall(ASK)
    return line.recv(100).startswith(b"HTTP/1.1 200")


def is_closed(line: socket.socket) -> bool:
    """Read until the gateway closes the connection, and ignore what it sends before."""
    with suppress(ConnectionResetError):
        while line.recv(1_000):
            pass
    return True


@pytest.mark.parametrize("head", [b"", b"GET /healthz HTTP/1.1\r\nHo", ASK + b"GET /"])
def test_a_request_without_the_end_of_its_header_is_not_waited_for(
    service: MemoryService, head: bytes
) -> None:
    with closing(connected(service)) as line:
        line.sendall(head)
        assert is_closed(line)


def test_one_byte_now_and_then_gains_no_time(service: MemoryService) -> None:
    """On a busy machine the time limit may pass after one byte, which proves nothing, so the test
    tries again."""
    eventually(lambda: dripped(service) > 2, 60, "a connection closed between bytes")


def dripped(service: MemoryService) -> int:
    """Send a request byte by byte until the gateway closes the connection; return the number of
    bytes. Between two bytes the gateway answers another request, so it has seen the first."""
    sent = 0
    with closing(connected(service)) as line, httpx.Client(base_url=service.url) as other:
        try:
            while True:
                line.sendall(b"GET /" if not sent else b"x")
                sent += 1
                assert other.get("/healthz").is_success
                line.settimeout(0.01)
                try:
                    assert line.recv(10) == b""
                    break
                except TimeoutError:
                    pass
        except ConnectionError:
            pass
    return sent


def test_a_slow_body_is_answered_and_its_connection_closed(service: MemoryService) -> None:
    with closing(connected(service)) as line:
        line.sendall(
            b"POST /v1/embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"te'
        )
        answer = b""
        while piece := line.recv(4_096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer
    assert b"CLIPFLEET_LIMITS__BODY_S" in answer


def test_those_that_are_idle_make_room_for_others(service: MemoryService) -> None:
    with ExitStack() as stack:
        lines = [
            stack.enter_context(closing(connected(service))) for _ in range(3 * MAX_CONNECTIONS)
        ]
        assert answers(lines[-1])
        assert is_closed(lines[0])


def test_slow_bodies_make_room_for_others() -> None:
    """The gateway closes the oldest connection and answers the next request."""
    head = b"POST /v1/collections/c/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n"
    patient = {**BRIEF, "header_s": 60, "body_s": 60}
    with MemoryService(limits=patient) as service, ExitStack() as lines:
        slow = [lines.enter_context(closing(connected(service))) for _ in range(MAX_CONNECTIONS)]
        for line in slow:
            line.sendall(head + b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n{")
            assert line.recv(100).startswith(b"HTTP/1.1 100"), "the gateway reads the body"
        assert answers(lines.enter_context(closing(connected(service))))
        assert is_closed(slow[0])


def test_a_client_that_does_not_read_its_answer_is_given_up(service: MemoryService) -> None:
    with service.client() as client:
        client.create_collection("large")
        vectors = [
            {"id": str(n), "values": [1.0] * 64, "metadata": {"text": "x" * 30_000}}
            for n in range(500)
        ]
        client.upsert("large", vectors)
    body = b'{"vector": %s, "top_k": 500}' % str([1.0] * 64).encode()
    head = (
        b"POST /v1/collections/large/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    with closing(connected(service)) as line:
        line.sendall(head + body)
        eventually(lambda: has_hung_up(line), 20, "the end of the connection")
        total = 0
        with suppress(ConnectionResetError):
            while piece := line.recv(1 << 20):
                total += len(piece)
        assert total < 14_000_000


def has_hung_up(line: socket.socket) -> bool:
    """Whether the gateway refuses what is sent; nothing is read."""
    try:
        line.send(b"G")
    except OSError:
        return True
    return False
