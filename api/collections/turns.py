"""Writes rows while no other writer has them in hand.

A worker may store new embeddings of the same images, and another request may delete them. A row
that was read before, and is written back, would undo that.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest, Unavailable
from clipfleet.common.ledger.catalogue import HOLD_S

INTERVAL_S = 0.05  # between two looks at rows that others have in hand
PATIENCE_S = HOLD_S + 5  # what a writer that was killed had in hand is free after HOLD_S


async def write_in_turn(
    keys: Sequence[str],
    collection: Collection,
    gateway: Gateway,
    write: Callable[[list[str]], Awaitable[None]],
) -> None:
    """Call `write` with the keys that no other writer has in hand, until all had their turn.

    Raises:
        Unavailable: others have some of the rows in hand for too long.
    """
    holder, waiting = secrets.token_hex(8), list(keys)
    until = time.monotonic() + PATIENCE_S
    catalogue = gateway.catalogue
    while waiting:
        busy = await gateway.call(catalogue.hold, collection, waiting, holder, HOLD_S)
        free = [pk for pk in waiting if pk not in busy]
        try:
            if free:
                await write(free)
        except InvalidRequest:  # nothing was sent to the store
            await gateway.call(catalogue.release, collection, free, holder)
            raise
        await gateway.call(catalogue.release, collection, free, holder)
        waiting = [pk for pk in waiting if pk in busy]
        if waiting and time.monotonic() > until:
            raise Unavailable(
                f"{len(waiting)} of the images are being written by others for more than "
                f"{PATIENCE_S:g} s; try again"
            )
        if waiting:
            await asyncio.sleep(INTERVAL_S)
