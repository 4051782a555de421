"""What happens to every request before a route sees it: an id, a known host, a size limit."""

import re
import secrets
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipfleet.api.problems import of_error, problem
from clipfleet.common.errors import TooLarge
from clipfleet.common.logs import about
from clipfleet.common.settings import Settings

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Guard:
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
        with about(request_id=request_id):
            await self._guarded(scope, headers, receive, _signed(send, scope["state"]))

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
        limit = self._limit(headers.get(b"content-type", b""))
        if int(headers.get(b"content-length", b"0") or 0) > limit:
            await of_error(scope, _too_large(limit))(scope, receive, send)
            return
        await self._app(scope, _counted(receive, limit), send)

    def _known_host(self, host: str) -> bool:
        return not self._settings.allowed_hosts or host_name(host) in self._settings.allowed_hosts

    def _limit(self, content_type: bytes) -> int:
        limits = self._settings.limits
        is_form = content_type.startswith(b"multipart/")
        return limits.request_bytes if is_form else limits.json_bytes


def host_name(host: str) -> str:
    """Of a Host header, without the port."""
    return re.sub(r":\d+$", "", host)


def from_another_site(method: str, headers: dict[bytes, bytes]) -> bool:
    """A browser names the page's site when it sends a form or a file from there."""
    origin = headers.get(b"origin", b"")
    safe = method in ("GET", "HEAD", "OPTIONS")
    return bool(origin) and not safe and origin.partition(b"://")[2] != headers.get(b"host")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request is larger than {limit} bytes", limit_bytes=limit)


def _counted(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, _too_large(limit).detail)
        return message

    return counted


def _signed(send: Send, state: dict[str, Any]) -> Send:
    """Every answer has the request's id, and what is left to its key, where that is limited."""

    async def signed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = list(message.get("headers", []))
            if not any(name == b"x-request-id" for name, _ in headers):
                headers.append((b"x-request-id", state["request_id"].encode()))
            if ration := state.get("ration"):
                headers += [
                    (name.lower().encode(), said.encode()) for name, said in ration.headers()
                ]
            message = {**message, "headers": headers}
        await send(message)

    return signed
