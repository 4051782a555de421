"""Every request is counted and timed by its route and, where logs are for machines, has a line."""

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipfleet.api.ops.metrics import GatewayMetrics

log = logging.getLogger(__name__)

NO_ROUTE = "none"  # refused before one was looked for, or there is none
HUNG_UP, BROKE = 499, 500


class AccessLogMiddleware:
    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, lines: bool) -> None:
        self._app, self._metrics, self._lines = app, metrics, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["refused"] = self._metrics.refused
        status, began = HUNG_UP, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            status = BROKE
            raise
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope)
        self._metrics.answered(scope["method"], route, status, seconds)
        if self._lines:
            said = {
                "method": scope["method"],
                "path": scope["path"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 6),
                "request_id": scope.get("state", {}).get("request_id", ""),
            }
            log.info("%s %s %d", said["method"], said["path"], status, extra={"said": said})


def route_of(scope: Scope) -> str:
    route: Any = scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", None) or NO_ROUTE)
