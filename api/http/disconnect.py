"""Ends a route when its client closes the connection; otherwise the route would run to its end."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Depends, Request

from clipfleet.common.errors import ClipfleetError


class ClientGone(ClipfleetError):
    """The client closed the connection. The error is only logged: no client can receive it."""

    status = 499
    slug = "client-gone"
    title = "The client closed the connection"


async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the route when its client closes the connection. Only for routes that change nothing.

    Dependencies run after the body was read, so that the next message is the disconnect.

    Raises:
        ClientGone: the client closed the connection.
    """
    until_disconnect = asyncio.timeout(None)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        until_disconnect.reschedule(0)

    try:
        async with until_disconnect:
            watcher = asyncio.create_task(watch())
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError as error:
        if not until_disconnect.expired():
            raise
        raise ClientGone("the client closed the connection before the response") from error


# Ends before the response is sent: uvicorn reports a disconnect after a response, too.
WHILE_CONNECTED = Depends(while_connected, scope="function")
