"""Servers on loopback that accept connections and never answer."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Silent:
    """A silent server. `url` ends with a slash. `reached` is set at the first connection."""

    url: str
    accepted: int = 0
    closed: int = 0  # by those who connected
    reached: threading.Event = field(default_factory=threading.Event)

    @property
    def open(self) -> int:
        return self.accepted - self.closed


@contextmanager
def silent(host: str = "127.0.0.1") -> Iterator[Silent]:
    """Run a silent server. With the host "" it listens on all of 127.0.0.0/8."""
    over = threading.Event()
    with socket.create_server((host, 0), backlog=1_024) as server, selectors.DefaultSelector() as s:
        there = Silent(f"http://{host or '127.0.0.1'}:{server.getsockname()[1]}/")
        server.setblocking(False)
        s.register(server, selectors.EVENT_READ)

        def serve() -> None:
            while not over.is_set():
                for key, _ in s.select(0.05):
                    _look(server, key.fileobj, s, there)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield there
        finally:
            over.set()
            thread.join()
            for key in list(s.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()


def _look(
    server: socket.socket, ready: object, known: selectors.BaseSelector, there: Silent
) -> None:
    assert isinstance(ready, socket.socket)
    if ready is server:
        connection, _ = server.accept()
        connection.setblocking(False)
        known.register(connection, selectors.EVENT_READ)
        there.accepted += 1
        there.reached.set()
        return
    data = b""
    with suppress(OSError):
        data = ready.recv(65_536)
    if not data:
        known.unregister(ready)
        ready.close()
        there.closed += 1
