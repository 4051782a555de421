"""Calls both clients in the same way, and serves responses that a test chooses."""

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from clipfleet import AsyncClient, Client


class Awaited:
    """An AsyncClient that is called like a Client: each call runs on an event loop."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **options)

    def __enter__(self) -> "Awaited":
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._runner.run(self._client.__aexit__(*error))
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            result = getattr(self._client, name)(*args, **options)
            return self._runner.run(_all(result) if inspect.isasyncgen(result) else result)

        return call


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(params=[Client, Awaited], ids=["Client", "AsyncClient"])
def client_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@dataclass
class Seen:
    """A request. `size` is the size of the body, and `body` its first megabyte."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    size: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


HANG_UP = None  # the connection ends without an answer
Respond = Callable[[Seen], Answer | None]


def in_turn(*answers: Answer | None) -> Respond:
    remaining = list(answers)
    return lambda _: remaining.pop(0)


@dataclass
class Service:
    url: str
    seen: list[Seen]


@contextmanager
def service(respond: Respond, port: int = 0) -> Iterator[Service]:
    """Run an HTTP server on a port of its own."""
    seen: list[Seen] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(self._request())
            answer = respond(seen[-1])
            self.close_connection = answer is HANG_UP
            if answer is not HANG_UP:
                self._answer(answer)

        do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def _request(self) -> Seen:
            address, kept, size = urlsplit(self.path), b"", 0
            length = int(self.headers.get("Content-Length", 0))
            while length > size and (data := self.rfile.read(min(65_536, length - size))):
                size += len(data)
                kept += data if len(kept) < 1_000_000 else b""
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            return Seen(self.command, address.path, query, headers, kept, size)

        def _answer(self, answer: Answer) -> None:
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body)
            data = body if isinstance(body, bytes) else body.encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Service(f"http://127.0.0.1:{server.server_port}", seen)
        finally:
            server.shutdown()
            thread.join()


def job(state: str = "running", **known: Any) -> dict[str, Any]:
    """A job as the service returns it."""
    counts = {"total": 0, "done": 0, "failed": 0, "skipped": 0}
    times = {"rate": None, "eta_s": None, "started_at": None, "finished_at": None}
    names = {"id": "j1", "collection": "images", "namespace": "default", "state": state}
    rest = {"created_at": 0.0, "error": None, "waiting": None}
    return {**names, **counts, **times, **rest, **known}
