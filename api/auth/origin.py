"""Middleware for every request: request ids, allowed hosts and origins, and paced responses."""

import asyncio
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipfleet.api.http.problems import problem
from clipfleet.common.process.logs import log_context
from clipfleet.common.settings import Settings

LINGER_S, LINGER_BYTES = 2.0, 32_000_000  # a refused client may still send so much
SLICE = 65_536  # bytes of a response handed over at once; then the client has to read

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestGuard:
    """Gives every request an id and refuses hosts that are not in `settings.allowed_hosts`.

    Below a prefix (`settings.root_path`), paths are understood with it and without it.

    This keeps pages of other web sites from a service on loopback (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        header = headers.get(b"x-request-id", b"")
        request_id = header.decode() if _REQUEST_ID.fullmatch(header) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        if self._settings.root_path:
            scope["root_path"] = self._settings.root_path
        policy = self._resource_policy(headers)
        with log_context(request_id=request_id):
            exchange = _Exchange(headers, receive, _add_headers(send, scope, policy))
            await self._handle_allowed(scope, headers, exchange.receive, exchange.send)

    async def _handle_allowed(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        if not self._is_allowed_host(headers.get(b"host", b"").decode("latin-1")):
            text = "this host name is not allowed; CLIPFLEET_ALLOWED_HOSTS lists the allowed names"
            refusal = problem(scope, 421, "misdirected", "Misdirected request", text)
            await refusal(scope, receive, send)
            return
        allowed = self._settings.cors_origins
        if self._settings.allowed_hosts and from_another_site(scope["method"], headers, allowed):
            text = other_site_problem(headers)
            await problem(scope, 403, "forbidden", "Not allowed", text)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _resource_policy(self, headers: dict[bytes, bytes]) -> bytes:
        """Which pages may show answers as images, for browsers that do not say who asks; b"": any.

        An open service answers pages of any site.
        """
        if self._settings.open and not self._settings.allowed_hosts:
            return b""
        listed = _is_listed(headers, self._settings.cors_origins)
        return b"cross-origin" if listed else b"same-origin"

    def _is_allowed_host(self, host: str) -> bool:
        return not self._settings.allowed_hosts or host_name(host) in self._settings.allowed_hosts


def host_name(host: str) -> str:
    """Return the host of a Host header, without the port."""
    return re.sub(r":\d+$", "", host)


def from_another_site(
    method: str, headers: dict[bytes, bytes], allowed: Sequence[str] = ()
) -> bool:
    """Whether a page of another site makes this request, be it for an image.

    Browsers say so in `Sec-Fetch-Site`, and name the site in `Origin` when a page sends a form or a
    file. A link that opens in a tab is no request of the page with the link, which learns nothing.

    Args:
        method: the method of the request.
        headers: the headers of the request.
        allowed: origins that count as this site; "*": all.
    """
    if _is_listed(headers, allowed):
        return False
    safe, site = method in ("GET", "HEAD", "OPTIONS"), headers.get(b"sec-fetch-site", b"")
    if site == b"same-origin":  # also where a proxy has changed the Host
        return False
    if site in (b"same-site", b"cross-site"):
        opens = headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")
        return not safe or opens != (b"navigate", b"document")
    origin = headers.get(b"origin", b"")
    return bool(origin) and not safe and origin.partition(b"://")[2] != headers.get(b"host")


def other_site_problem(headers: dict[bytes, bytes]) -> str:
    """Why the request of a page is refused, and what to do where it is no page of another site."""
    text = "requests from pages of other sites are refused"
    page, host = headers.get(b"origin", b""), headers.get(b"host", b"")
    if page and b"sec-fetch-site" not in headers:
        shown, name = page.decode("latin-1")[:200], host.decode("latin-1")[:200]
        text += f": the page is at {shown}, and the request names the host {name}"
    return (
        f"{text}; CLIPFLEET_CORS_ORIGINS lists sites that are not, and a proxy has to pass on the "
        "Host of the browser"
    )


def _is_listed(headers: dict[bytes, bytes], allowed: Sequence[str]) -> bool:
    """Whether the page is of a listed origin. Browsers send no `Origin` for an image, but the
    `Referer`, which a page cannot change to another site."""
    if not allowed:
        return False
    page = headers.get(b"origin") or b"/".join(headers.get(b"referer", b"").split(b"/")[:3])
    return "*" in allowed or page.decode("latin-1") in allowed


class _Exchange:
    """Paces the response to one request.

    A response that starts before the whole body was read has `Connection: close`. The connection
    then stays open for up to LINGER_S, so that a client that sends before it reads gets the
    response. A large body is sent in slices, each after the client has read the slice before.
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
        drained = 0
        while self._unread and drained < LINGER_BYTES:
            drained += len((await self.receive()).get("body", b""))


def _add_headers(send: Send, scope: Scope, policy: bytes) -> Send:
    """Add the request id and the rate limit of the key, where there is one, to every response.

    A Location below a prefix (CLIPFLEET_ROOT_PATH) gets the prefix.

    Args:
        send: sends the response.
        scope: the scope of the request.
        policy: the Cross-Origin-Resource-Policy; b"": none.
    """
    state, prefix = scope["state"], scope.get("root_path", "").rstrip("/").encode()

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = [
                (name, prefix + value if name == b"location" and value[:1] == b"/" else value)
                for name, value in message.get("headers", [])
            ]
            if policy:
                headers.append((b"cross-origin-resource-policy", policy))
            if not any(name == b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", state["request_id"].encode()))
            if rate_limit := state.get("rate_limit"):
                headers += [
                    (name.lower().encode(), value.encode()) for name, value in rate_limit.headers()
                ]
            message = {**message, "headers": headers}
        await send(message)

    return send_with_headers
