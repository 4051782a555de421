"""A web server on loopback whose pages are functions of a test."""

import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

Page = Callable[["PageRequest"], None]


class PageRequest(BaseHTTPRequestHandler):
    """A request, with methods to answer it."""

    protocol_version = "HTTP/1.1"
    sent = b""  # the body of the request

    def do_POST(self) -> None:
        self.sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = cast("Server", self.server).site
        with site.lock:
            site.seen.append(self)
            site.connections.add(self.client_address)
        site.pages[self.path.partition("?")[0]](self)

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """Send a response. A header is written with `_` for `-`."""
        self.begin(status, Content_Length=str(len(body)), **headers)
        self.wfile.write(body)

    def begin(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def pour(self, pieces: Iterator[bytes]) -> None:
        """Send data without a length, until it ends or the client hangs up."""
        self.close_connection = True
        try:
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:
            pass

    def reset(self) -> None:
        """Reset the connection, as a crash does."""
        self.close_connection = True
        linger = b"\1\0\0\0\0\0\0\0"
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RD)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Site:
    """A running server. `seen` are the requests so far, `connections` their client addresses."""

    url: str
    port: int
    pages: Mapping[str, Page]
    seen: list[PageRequest] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Server(ThreadingHTTPServer):
    site: Site
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Ignore errors: in these tests clients hang up."""


@contextmanager
def site(
    pages: Mapping[str, Page], host: str = "127.0.0.1", port: int = 0, tls: Path | None = None
) -> Iterator[Site]:
    """Run a server. `tls` is a file with key and certificate."""
    server = Server((host, port), PageRequest)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.site = Site(f"http://{host}:{server.server_port}", server.server_port, pages)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Held:
    """A page that waits for `open`. `reached` is set when the first request waits."""

    page: Page
    reached: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, request: PageRequest) -> None:
        self.reached.set()
        self.open.wait(300)
        self.page(request)


def in_turn(*pages: Page) -> Page:
    """A page that serves the n-th page for the n-th request, and the last one from then on."""
    remaining = itertools.chain(pages, itertools.repeat(pages[-1]))
    return lambda request: next(remaining)(request)


def body(data: bytes, **headers: str) -> Page:
    return lambda request: request.answer(data, 200, **headers)


def status(code: int, **headers: str) -> Page:
    return lambda request: request.answer(b"no", code, **headers)


def to(where: str, code: int = 302) -> Page:
    return status(code, Location=where)
