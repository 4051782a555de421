"""Middleware that answers HEAD wherever GET is answered."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Handles a HEAD request as the GET request of the same path, and sends no body.

    The work of the GET request is done, up to the first byte of its answer: a long answer, such as
    an export, ends there. So does a stream of events.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        got = {**scope, "method": "GET"}  # the server reads the method in its own scope

        async def send_start(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self._app(got, receive, send_start)
        finally:
            if "route" in got:  # for the access log
                scope["route"] = got["route"]
