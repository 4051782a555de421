"""Limits on a gateway's connections: their number, and how long a client may keep one waiting.

uvicorn limits neither. A client that sends nothing, or sends a header very slowly, or does not read
the response, would keep its connection forever. `uvicorn --http` takes `Protocol`.

Requests are parsed by httptools, which takes a fifth of a gateway's processor time less than h11.
Without httptools, and for requests that offer another protocol, it is h11.
"""

import asyncio
import math
import resource
import socket
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from clipfleet.common.settings import Limits

STATE = "connections"  # the key of `Connections` in the state of the application's lifespan
SPARE_FILES = 256  # descriptors that are not for connections of clients
HEADER_BYTES = 65_536  # of one request
AHEAD_BYTES = 32_768  # of requests that a client may send before it has the answer to the first
AHEAD_REQUESTS = 16  # of these; httptools reads them all
UNSENT_BYTES = 65_536  # of an answer in the system's buffer, beyond those on their way
VANISHED_S = 60.0  # without a word that what was sent has arrived
PAUSE_S = 2.0  # between two requests; closing a connection that is in use may fail a request


def raise_file_limit() -> None:
    """Raise the limit on open files to the maximum that the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS does not accept infinity
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Connections:
    """The open connections of one gateway.

    Args:
        limits: the limits of the service.

    Attributes:
        limit: connections at most; fewer than `limits.connections` when the process may not open
            enough files.
        open: all connections, the oldest first.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = limits.connections if files == resource.RLIM_INFINITY else files - SPARE_FILES
        self.limit = max(1, min(limits.connections, room))
        self.open: dict[_Limited, None] = {}
        self._slowest: list[_Limited] = []  # the slowest last, as of `_sorted_at`
        self._sorted_at = 0.0

    def make_room(self, now: float) -> None:
        """Close a connection when there are too many.

        This is the connection whose client has kept the gateway waiting for longest: for a request,
        for the rest of one, or to read an answer. If the gateway waits for none of the clients, it
        is the newest connection.

        Args:
            now: the time of the event loop, in seconds.
        """
        if len(self.open) <= self.limit:
            return
        slowest = self._next_slowest(now) or next(reversed(self.open))
        del self.open[slowest]  # the transport reports the end later, after other connections
        slowest.transport.abort()

    def _next_slowest(self, now: float) -> "_Limited | None":
        """Sorting at each call would take the event loop 2 ms for 2,000 connections."""
        while self._slowest:
            slowest = self._slowest.pop()
            if slowest in self.open and now - slowest.waited_s(now) <= self._sorted_at:
                return slowest
        # Of several equal ones, the oldest is the last.
        _, *others = reversed(self.open)
        waited = {connection: connection.waited_s(now) for connection in others}
        waiting = (connection for connection, seconds in waited.items() if seconds > -math.inf)
        self._slowest = sorted(waiting, key=waited.__getitem__)
        self._sorted_at = now
        return self._slowest.pop() if self._slowest else None


class Lag:
    """The time by which a client is behind a rate. It never gets ahead of the rate.

    Args:
        rate: bytes a second.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._behind_s = 0.0
        self._since: float | None = None

    def start(self, now: float) -> None:
        """Begin to wait for the client."""
        if self._since is None:
            self._since = now

    def stop(self, now: float) -> None:
        """Cease to wait for the client."""
        self._behind_s, self._since = self.seconds(now), None

    def moved(self, count: int, now: float) -> None:
        """Count bytes that the client has sent or read."""
        waits = self._since is not None
        self.stop(now)
        self._behind_s = max(0.0, self._behind_s - count / self._rate)
        if waits:
            self.start(now)

    def seconds(self, now: float) -> float:
        """Return the time by which the client is behind."""
        return self._behind_s + (0.0 if self._since is None else now - self._since)


class _Limited:
    """One connection, which is closed when the client keeps it waiting for too long.

    It goes before a protocol of uvicorn among the bases of a class. The next request is handled
    after the system has taken the whole answer to the one before.
    """

    cycle: Any
    timeout_keep_alive: Any
    flow: Any
    loop: asyncio.AbstractEventLoop
    transport: Any

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)  # type: ignore[call-arg]
        self.app = self._count_sent(config.loaded_app)
        self._start = (config, server_state, app_state, _loop)
        self._all: Connections = app_state.get(STATE) or Connections(Limits())
        self.timeout_keep_alive = self._all.limits.keep_alive_s
        self._header: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()
        self._body, self._answer = Lag(self._all.limits.body_rate), Lag(self._all.limits.send_rate)
        self._sent = self._taken = 0  # bytes of answers: all, and those that the system has taken
        self._ends_later = False  # an answer is complete, but the system has not taken it all

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        transport.set_write_buffer_limits(0)  # writing is paused while any byte waits
        set_options(transport.get_extra_info("socket"))
        self._all.open[self] = None
        self._wait_for_header()
        self._all.make_room(self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # type: ignore[misc]
        self._all.open.pop(self, None)
        self._have_header()
        if self._unread is not None:
            self._unread.cancel()

    def waited_s(self, now: float) -> float:
        """Return for how long the gateway has waited for this client.

        Args:
            now: the time of the event loop, in seconds.

        Returns:
            Seconds. The wait for another request begins after PAUSE_S, so it is negative before.
            Minus infinity while the gateway itself has to do something.
        """
        if self.flow.write_paused:
            self._note_reading(now)
            return self._answer.seconds(now)
        if self._has_no_request:
            return now - self._idle_since - (PAUSE_S if self.cycle else 0.0)
        is_waiting = self.cycle.more_body and not self.flow.read_paused
        return self._body.seconds(now) if is_waiting else -math.inf

    @property
    def _has_no_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        before, now = self.cycle, self.loop.time()
        super().data_received(data)  # type: ignore[misc]
        if self._has_no_request:
            self._wait_for_header()
            return
        self._have_header()
        if self.cycle is not before:
            self._wait_for_body(now)
        else:
            self._body.moved(len(data), now)
        if not self.cycle.more_body and self._ahead(len(data)) > AHEAD_BYTES:
            self._close()

    def _ahead(self, received: int) -> int:
        """Return the bytes of requests whose turn has not come.

        Args:
            received: the bytes that came last.
        """
        raise NotImplementedError

    def on_response_complete(self) -> None:
        if self.flow.write_paused and not self.transport.is_closing():
            self._ends_later = True
            self.flow.pause_reading()
            return
        self._idle_since = self.loop.time()  # uvicorn closes it unless a request follows soon
        self._wait_for_body(self._idle_since)
        super().on_response_complete()  # type: ignore[misc]  # begins with the next request, if it was read before

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._answer.start(self.loop.time())
        if self._unread is None:
            self._check_reading()

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        now = self.loop.time()
        self._note_reading(now)
        self._answer.stop(now)
        if self._ends_later:
            self._ends_later = False
            self.on_response_complete()

    def _count_sent(self, app: ASGIApp) -> ASGIApp:
        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_and_count(message: Message) -> None:
                await send(message)
                self._sent += len(message.get("body", b""))

            await app(scope, receive, send_and_count)

        return counted

    def _note_reading(self, now: float) -> None:
        taken = self._sent - self.transport.get_write_buffer_size()
        self._answer.moved(max(0, taken - self._taken), now)
        self._taken = max(taken, self._taken)

    def _check_reading(self) -> None:
        """Close the connection of a client that is behind by `send_s`."""
        self._unread = None
        if not self.flow.write_paused:
            return
        now = self.loop.time()
        self._note_reading(now)
        remaining_s = self._all.limits.send_s - self._answer.seconds(now)
        if remaining_s <= 0:
            self._close()
        else:
            self._unread = self.loop.call_later(remaining_s, self._check_reading)

    def _wait_for_header(self) -> None:
        """Start the timeout of a header, which does not start again with each byte."""
        if self._header is None:
            self._header = self.loop.call_later(self._all.limits.header_s, self._close)

    def _wait_for_body(self, now: float) -> None:
        self._body = Lag(self._all.limits.body_rate)
        self._body.start(now)

    def _have_header(self) -> None:
        if self._header is not None:
            self._header.cancel()
            self._header = None

    def _close(self) -> None:
        self.transport.abort()


class PatientProtocol(_Limited, H11Protocol):
    """A connection whose requests are parsed by h11."""

    def _ahead(self, received: int) -> int:  # noqa: ARG002
        return len(self.conn.trailing_data[0])


class QuickProtocol(_Limited, AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection whose requests are parsed by httptools.

    httptools limits neither the length of a header nor the requests that a client sends ahead. It
    drops the body of a request that offers another protocol, as each first request of Java's
    HttpClient offers HTTP/2 (httptools #124, uvicorn #2722). h11 takes over such a connection.
    """

    _ahead_bytes = _header_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._has_no_request and b"upgrade:" in data[:HEADER_BYTES].lower():
            self._hand_over(data)
            return
        super().data_received(data)

    def _hand_over(self, data: bytes) -> None:
        """Let h11 parse this request and all later ones."""
        patient = PatientProtocol(*self._start)
        self.connections.discard(self)
        self._all.open.pop(self, None)
        self._have_header()
        self._unset_keepalive_if_required()
        self.transport.set_protocol(patient)
        patient.connection_made(self.transport)
        patient.data_received(data)

    def _ahead(self, received: int) -> int:
        self._ahead_bytes = self._ahead_bytes + received if self.pipeline else 0
        return self._ahead_bytes

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= AHEAD_REQUESTS:
            self._close()
            raise ValueError("requests ahead")  # ends the parsing; the connection is closed
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))
        super().on_header(name, value)

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > HEADER_BYTES:
            raise ValueError("the header is too long")  # uvicorn answers 400


Protocol = PatientProtocol if issubclass(AutoHTTPProtocol, H11Protocol) else QuickProtocol


def set_options(connection: socket.socket | None) -> None:
    """Let the system take an answer in small pieces, and give up a client that has vanished.

    Otherwise the system takes nothing until a third of its buffer is free, which can be 1 MB, and
    the event stream of a client that lost its network stays open for a quarter of an hour.

    Args:
        connection: a TCP connection. One of another kind, or None, is left as it is.
    """
    options = {"TCP_NOTSENT_LOWAT": UNSENT_BYTES, "TCP_USER_TIMEOUT": int(1e3 * VANISHED_S)}
    for name, value in options.items():
        option = getattr(socket, name, None)
        if connection is not None and option is not None:
            with suppress(OSError):  # a UNIX socket has no such option
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
