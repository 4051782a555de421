"""What happens to every request before a route sees it: an id, a known host. And to every answer:
a client that has not sent all of its body yet is not listened to for long."""

import asyncio
import re
import secrets
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipfleet.api.http.problems import problem
from clipfleet.common.process.logs import log_context
from clipfleet.common.settings import Settings

LINGER_S, LINGER_BYTES = 2.0, 32_000_000  # what a refused client may still send
SLICE = 262_144  # bytes of an answer handed over at once; then the client has to read

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestGuard:
    """`allowed_hosts` keeps web pages of strangers from a service on loopback (DNS rebinding)."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        with log_context(request_id=request_id):
            exchange = _Exchange(headers, receive, _signed(send, scope["state"]))
            await self._guarded(scope, headers, exchange.receive, exchange.send)

    async def _guarded(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        if not self._known_host(headers.get(b"host", b"").decode("latin-1")):
            text = "this host name is not served here; CLIPFLEET_ALLOWED_HOSTS lists those that are"
            refusal = problem(scope, 421, "misdirected", "Misdirected request", text)
            await refusal(scope, receive, send)
            return
        if self._settings.allowed_hosts and from_another_site(scope["method"], headers):
            text = "requests from other sites' pages are refused on loopback"
            await problem(scope, 403, "forbidden", "Not allowed", text)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _known_host(self, host: str) -> bool:
        return not self._settings.allowed_hosts or host_name(host) in self._settings.allowed_hosts


def host_name(host: str) -> str:
    """Of a Host header, without the port."""
    return re.sub(r":\d+$", "", host)


def from_another_site(method: str, headers: dict[bytes, bytes]) -> bool:
    """A browser names the page's site when it sends a form or a file from there."""
    origin = headers.get(b"origin", b"")
    safe = method in ("GET", "HEAD", "OPTIONS")
    return bool(origin) and not safe and origin.partition(b"://")[2] != headers.get(b"host")


class _Exchange:
    """A request and its answer.

    Whoever is answered before all of the body was read is told that the connection closes. It stays
    open for a moment, so that a client that sends before it reads gets the answer. Large answers go
    out in slices, each when the client has read the one before.
    """

    def __init__(self, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        length = headers.get(b"content-length", b"0")
        self._unread = b"transfer-encoding" in headers or length != b"0"
        self._closes = False

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._closes = self._unread
            if self._closes:
                headers = [*message.get("headers", []), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await self._send(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        for start in range(0, len(body) - SLICE, SLICE):
            await self._send_body(body[start : start + SLICE], True)
        rest = body[(len(body) - 1) // SLICE * SLICE :] if body else b""
        if more or not self._closes:
            await self._send_body(rest, more)
            return
        await self._send_body(rest, True)
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._drain()
        await self._send_body(b"", False)

    async def _send_body(self, body: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _drain(self) -> None:
        seen = 0
        while self._unread and seen < LINGER_BYTES:
            seen += len((await self.receive()).get("body", b""))


def _signed(send: Send, state: dict[str, Any]) -> Send:
    """Every answer has the request's id, and what is left to its key, where that is limited."""

    async def signed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = list(message.get("headers", []))
            if not any(name == b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", state["request_id"].encode()))
            if rate_limit := state.get("rate_limit"):
                headers += [
                    (name.lower().encode(), value.encode()) for name, value in rate_limit.headers()
                ]
            message = {**message, "headers": headers}
        await send(message)

    return signed
