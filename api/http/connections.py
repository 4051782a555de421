"""Limits on a gateway's connections: their number, and how long a client may stay silent.

uvicorn limits neither. A client that sends nothing, or sends a header very slowly, or does not read
the response, would keep its connection forever. `uvicorn --http` takes `Protocol`.
"""

import asyncio
import resource
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from clipfleet.common.settings import Limits

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as HttpProtocol
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as HttpProtocol

STATE = "connections"  # the key of `Connections` in the state of the application's lifespan
SPARE_FILES = 256  # descriptors that are not for connections of clients


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
        idle: the connections without a request, the one that is idle for longest first.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = limits.connections if files == resource.RLIM_INFINITY else files - SPARE_FILES
        self.limit = max(1, min(limits.connections, room))
        self.open: dict[Protocol, None] = {}
        self.idle: dict[Protocol, None] = {}

    def make_room(self) -> None:
        """Close a connection when there are too many.

        This is the connection that is idle for longest; if none is idle, the oldest connection
        that has not sent its whole request; if there is none either, the newest connection.
        """
        if len(self.open) <= self.limit:
            return
        new = next(reversed(self.open))
        idle = (connection for connection in self.idle if connection is not new)
        slow = (connection for connection in self.open if connection.is_sending)
        next(chain(idle, slow, [new])).transport.abort()


class Protocol(HttpProtocol):
    """One connection, which is closed when the client stays silent for too long."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all: Connections = app_state.get(STATE) or Connections(Limits())
        self._header: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.open[self] = None
        self._wait_for_header()
        self._all.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.open.pop(self, None)
        self._all.idle.pop(self, None)
        self._have_header()
        self._have_read()

    @property
    def is_sending(self) -> bool:
        """Whether a part of the request has not arrived yet."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and cycle.more_body

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_header()
        else:
            self._all.idle.pop(self, None)
            self._have_header()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._all.idle.setdefault(self)  # uvicorn closes it unless a request follows soon

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._all.limits.send_s, self._close)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._have_read()

    def _wait_for_header(self) -> None:
        """Start the timeout of a header, which does not start again with each byte."""
        self._all.idle.setdefault(self)
        if self._header is None:
            self._header = self.loop.call_later(self._all.limits.header_s, self._close)

    def _have_header(self) -> None:
        if self._header is not None:
            self._header.cancel()
            self._header = None

    def _have_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close(self) -> None:
        self.transport.abort()
