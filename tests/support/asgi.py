"""Sends a request to an application in pieces, so that a test sees what is read, and when."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

HERE = ("127.0.0.1", 1)


@dataclass
class Exchange:
    """The response to a request.

    Attributes:
        read: bytes of the body that were read before the response.
        drained: bytes of the body that were read after it.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    read: int = 0
    drained: int = 0

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", self.content
        problem: dict[str, Any] = json.loads(self.content)
        assert problem["status"] == self.status
        return problem


async def speak(
    app: FastAPI,
    call: str,
    pieces: Iterable[bytes] | AsyncIterator[bytes] = (),
    key: str = "",
    **headers: str,
) -> Exchange:
    """Send a request.

    Args:
        app: the application.
        call: method and path, such as `POST /v1/embed`.
        pieces: pieces of the body. A ConnectionError is a client that hangs up.
        key: a name of `gateway_harness.KEYS`.
        headers: with `_` for `-`.
    """
    method, path = call.split(" ")
    sent = {"host": "127.0.0.1:8000", **headers}
    if key:
        sent["authorization"] = f"Bearer cf_{key}"
    body = _Pieces(pieces)
    seen = Exchange()

    async def receive() -> dict[str, Any]:
        message = await body.next()
        if seen.status:
            seen.drained += len(message.get("body", b""))
        else:
            seen.read += len(message.get("body", b""))
        return message

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.status = message["status"]
            seen.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            seen.content += message.get("body", b"")
            body.answered = not message.get("more_body", False)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
        "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "client": HERE, "server": ("127.0.0.1", 8000),
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()
        ],
    }  # fmt: skip
    await app(scope, receive, send)
    return seen


def spoken(app: FastAPI, call: str, *args: Any, **more: Any) -> Exchange:
    return asyncio.run(speak(app, call, *args, **more))


class _Pieces:
    def __init__(self, pieces: Iterable[bytes] | AsyncIterator[bytes]) -> None:
        self._pieces = pieces if isinstance(pieces, AsyncIterator) else _each(pieces)
        self._ended = self.answered = False

    async def next(self) -> dict[str, Any]:
        if not self._ended:
            try:
                piece = await anext(self._pieces)
                return {"type": "http.request", "body": piece, "more_body": True}
            except ConnectionError:
                self._ended = self.answered = True
                return {"type": "http.disconnect"}
            except StopAsyncIteration:
                self._ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
        while not self.answered:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def endless(piece: bytes, count: int = 0) -> AsyncIterator[bytes]:
    """So many of them (0: as many as are asked for), and then silence."""
    sent = 0
    while not count or sent < count:
        yield piece
        sent += 1
    await asyncio.Event().wait()
