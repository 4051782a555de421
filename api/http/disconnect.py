"""A client that hangs up costs no work that has not begun: a route alone would run to its end."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import Depends, Request

from clipfleet.common.errors import ClipfleetError


class ClientGone(ClipfleetError):
    """Raised for the log alone; there is nobody to send it to."""

    status = 499
    slug = "client-gone"
    title = "The client hung up"


async def while_connected(request: Request) -> AsyncIterator[None]:
    """Ends the route where it waits, once its client is gone. For routes that change nothing.

    The body has been read when dependencies run, so all that can still be received is the end.
    """
    patience = asyncio.timeout(None)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        patience.reschedule(0)

    try:
        async with patience:
            watcher = asyncio.create_task(watch())
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError as error:
        if not patience.expired():
            raise
        raise ClientGone("the client hung up before it was answered") from error


# Over before the response is sent: uvicorn calls a response that is out a disconnect, too.
WHILE_CONNECTED = Depends(while_connected, scope="function")
