"""The connections of a gateway: how many, and how long one may keep it waiting.

uvicorn bounds neither: a client that sends nothing, or one byte of a header now and then, or that
does not read its answer, would keep its connection for ever. `uvicorn --http` takes `Protocol`.
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

STATE = "connections"  # the key under which the application's lifespan has them
SPARE_FILES = 256  # descriptors for all that is no client's connection


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows it to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS takes no infinity
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Connections:
    """The open ones of one gateway."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = limits.connections if files == resource.RLIM_INFINITY else files - SPARE_FILES
        self.most = max(1, min(limits.connections, room))
        self.open: dict[Protocol, None] = {}  # the oldest first
        self.idle: dict[Protocol, None] = {}  # without a request, the longest so first

    def make_room(self) -> None:
        """When there are too many, close the connection that has been idle for longest, else the
        oldest one that has not sent all of its request, else the new one."""
        if len(self.open) <= self.most:
            return
        new = next(reversed(self.open))
        idle = (one for one in self.idle if one is not new)
        slow = (one for one in self.open if one.is_sending)
        next(chain(idle, slow, [new])).transport.abort()


class Protocol(HttpProtocol):
    """One connection."""

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
        """Whether a part of its request has not come in yet."""
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
            self._all.idle.setdefault(self)  # uvicorn closes it unless it goes on soon

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._all.limits.send_s, self._close)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._have_read()

    def _wait_for_header(self) -> None:
        """The time that there is for one does not begin anew with each of its bytes."""
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
