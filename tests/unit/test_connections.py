"""Slow and idle connections, to a real server in this process."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clipfleet.api.http import connections
from clipfleet.api.http.connections import Lag, PatientProtocol, QuickProtocol
from clipfleet.testing import MemoryService
from support.services import eventually

ASK = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MAX_CONNECTIONS = 8
ASK_DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
BRIEF = {"header_s": 0.2, "send_s": 0.5, "body_s": 0.2, "connections": MAX_CONNECTIONS}
VECTOR = [1.0] * 64
BODY = b'{"vector": %s, "top_k": 500}' % str(VECTOR).encode()
LARGE_SEARCH = (
    b"POST /v1/collections/large/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
LARGE = 14_000_000  # bytes of the answer to it, or a few more


@contextmanager
def large_answers(limits: dict[str, Any]) -> Iterator[MemoryService]:
    with MemoryService(limits=limits) as service, service.client() as client:
        client.create_collection("large")
        vectors = [
            {"id": str(n), "values": VECTOR, "metadata": {"text": "x" * 30_000}} for n in range(500)
        ]
        client.upsert("large", vectors)
        yield service


def read_slowly(service: MemoryService, request: bytes) -> int:
    """Send a request, and read with a request of another client after each read.

    Returns:
        The bytes that were read before the gateway closed the connection, or LARGE.
    """
    total = 0
    with closing(slow_reader(service)) as line, httpx.Client(base_url=service.url) as other:
        line.sendall(request)
        with suppress(ConnectionResetError):
            while total < LARGE and (piece := line.recv(30_000)):
                total += len(piece)
                assert other.get("/healthz").is_success
    return total


@pytest.fixture(scope="module", autouse=True, params=[QuickProtocol, PatientProtocol])
def protocol(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The gateway's protocol: with httptools, and with h11 as where httptools is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipfleet.testing.Protocol", request.param)
        yield request.param


@pytest.fixture(scope="module")
def service(protocol: Any) -> Iterator[MemoryService]:  # noqa: ARG001
    with MemoryService(limits=BRIEF) as running:
        yield running


def connected(service: MemoryService) -> socket.socket:
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def slow_reader(service: MemoryService) -> socket.socket:
    """A connection for which the system holds little of what the client has not read."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    line.settimeout(20)
    url = httpx.URL(service.url)
    line.connect((url.host, url.port or 80))
    return line


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


def test_a_connection_stays_open_after_an_answer_for_as_long_as_the_setting_says() -> None:
    brief = {"keep_alive_s": 0.2}
    with MemoryService(limits=brief) as service, closing(connected(service)) as line:
        line.settimeout(4)  # uvicorn's own default is 5 s
        line.sendall(ASK)
        answer = b""
        while piece := line.recv(4_096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in answer


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


def test_unread_answers_make_room_for_others() -> None:
    """Each client asks for more than the system holds, and reads nothing."""
    patient = {**BRIEF, "header_s": 60, "send_s": 60}
    with MemoryService(limits=patient) as service, ExitStack() as lines:
        unread = [
            lines.enter_context(closing(slow_reader(service))) for _ in range(MAX_CONNECTIONS)
        ]
        for line in unread:
            line.sendall(ASK_DOCUMENT * 60)
        eventually(lambda: is_answered(service), 20, "the answer to another client")
        eventually(lambda: any(map(has_hung_up, unread)), 20, "the end of a connection")


def is_answered(service: MemoryService) -> bool:
    with closing(connected(service)) as line:
        return answers(line)


def test_a_client_that_does_not_read_its_answer_is_given_up() -> None:
    with large_answers(BRIEF) as service, closing(connected(service)) as line:
        line.sendall(LARGE_SEARCH)
        eventually(lambda: has_hung_up(line), 20, "the end of the connection")
        total = 0
        with suppress(ConnectionResetError):
            while piece := line.recv(1 << 20):
                total += len(piece)
        assert total < LARGE


def test_a_client_that_reads_slower_than_the_rate_is_given_up() -> None:
    """Between two reads the gateway answers another request."""
    with large_answers({**BRIEF, "send_rate": 10**12}) as service:
        assert read_slowly(service, LARGE_SEARCH) < LARGE


def test_a_client_that_keeps_up_with_the_rate_gets_all_of_its_answer() -> None:
    with large_answers({**BRIEF, "send_rate": 1}) as service:
        assert read_slowly(service, LARGE_SEARCH) >= LARGE


def has_hung_up(line: socket.socket) -> bool:
    """Whether the gateway refuses what is sent; nothing is read."""
    try:
        line.send(b"G")
    except OSError:
        return True
    return False


def test_requests_ahead_of_an_unread_answer_are_bounded() -> None:
    patient = {**BRIEF, "header_s": 60, "send_s": 60}
    with MemoryService(limits=patient) as service, closing(slow_reader(service)) as line:
        line.sendall(ASK_DOCUMENT * 2_000)
        eventually(lambda: has_hung_up(line), 20, "the end of the connection")


def test_the_next_request_begins_after_the_answer_before_it_was_taken(protocol: Any) -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            begun.append(scope["path"])
            body = b"x" * (LARGE if scope["path"] == "/large" else 1)
            await Response(body)(scope, receive, send)

    with served(app, protocol) as url, ExitStack() as lines:
        line, other = (
            lines.enter_context(closing(socket.create_connection((url.host, url.port or 0), 20)))
            for _ in range(2)
        )
        line.sendall(ask("/large") + ask("/next"))
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        other.sendall(ask("/other"))
        assert other.recv(100).startswith(b"HTTP/1.1 200")
        assert begun == ["/large", "/other"]
        answer = b""
        while not answer.endswith(b"\r\n\r\nx"):
            answer = answer[-100:] + line.recv(1 << 20)
        assert begun == ["/large", "/other", "/next"]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body of the request."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await Response(body)(scope, receive, send)


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"


@pytest.mark.parametrize("upgrade", [UPGRADE, b""])
@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_the_body_of_a_request_that_offers_another_protocol_arrives(
    protocol: Any, upgrade: bytes, body: bytes
) -> None:
    """Java's HttpClient offers HTTP/2 with its first request."""
    request = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + upgrade + body
    with (
        served(echo, protocol) as url,
        closing(socket.create_connection((url.host, url.port or 0), 20)) as line,
    ):
        for _ in range(2):
            line.sendall(request)
            answer = b""
            while not answer.endswith(b"\r\n\r\nhello"):
                piece = line.recv(1_000)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [b"GET /%s HTTP/1.1\r\n" % (b"x" * 400_000), b"GET / HTTP/1.1\r\n" + b"A: xxxx\r\n" * 60_000],
)
def test_a_header_has_a_length_at_most(service: MemoryService, head: bytes) -> None:
    with closing(connected(service)) as line:
        line.sendall(head + b"Host: 127.0.0.1\r\n\r\n")
        with suppress(ConnectionResetError):
            assert line.recv(1_000).startswith(b"HTTP/1.1 400")


def test_a_few_requests_may_be_ahead_and_each_is_answered(service: MemoryService) -> None:
    with closing(connected(service)) as line:
        line.sendall(ASK * connections.AHEAD_REQUESTS)
        answer = b""
        while answer.count(b"HTTP/1.1 200") < connections.AHEAD_REQUESTS:
            piece = line.recv(10_000)
            assert piece, answer
            answer += piece


def ask(path: str) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode()


@contextmanager
def served(app: ASGIApp, protocol: Any) -> Iterator[httpx.URL]:
    """Serve an application with the gateway's protocol."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", http=protocol)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, 20, "the start of the server")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield httpx.URL(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()


def test_a_lag_grows_with_waiting_and_shrinks_with_what_comes() -> None:
    lag = Lag(rate=100)
    lag.moved(500, 0.0)
    assert lag.seconds(9.0) == 0.0, "no time is saved up"
    lag.start(10.0)
    assert lag.seconds(14.0) == 4.0
    lag.moved(300, 14.0)
    assert lag.seconds(15.0) == 2.0
    lag.stop(15.0)
    assert lag.seconds(99.0) == 2.0
    lag.start(100.0)
    lag.moved(1_000, 101.0)
    assert lag.seconds(101.5) == 0.5


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has this limit")
def test_a_client_that_vanished_is_given_up_after_a_minute() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
        server.accept()[0] as line,
    ):
        connections.set_options(line)
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
