"""Middleware that counts and times every request, and writes a log line for it."""

import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipfleet.api.ops.metrics import GatewayMetrics

log = logging.getLogger(__name__)

NO_ROUTE = "none"  # of requests that are refused before routing, or that match no route
CLIENT_GONE, FAILED = 499, 500


class AccessLogMiddleware:
    """Counts and times requests by their route.

    Args:
        app: the application.
        metrics: gets the numbers.
        lines: whether each request has a log line.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, lines: bool) -> None:
        self._app, self._metrics, self._lines = app, metrics, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = CLIENT_GONE, time.perf_counter()
        scope.setdefault("state", {}).update(refused=self._metrics.refused, began=began)

        async def send_and_watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_watch)
        except Exception:
            status = FAILED
            raise
        finally:
            self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = route_of(scope)
        self._metrics.answered(scope["method"], route, status, seconds)
        state = scope["state"]
        if durations := state.get("durations"):
            self._metrics.timed(route, durations, state.get("request_id", ""))
        if self._lines:
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 6),
                "request_id": scope.get("state", {}).get("request_id", ""),
            }
            log.info("%s %s %d", fields["method"], fields["path"], status, extra={"fields": fields})


def route_of(scope: Scope) -> str:
    """Return the template of the request's path, or NO_ROUTE."""
    route: Any = scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", None) or NO_ROUTE)
