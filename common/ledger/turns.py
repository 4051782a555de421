"""Writes rows while no other writer has them in hand, from a thread."""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from clipfleet.common.collection import Collection
from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger.catalogue import HOLD_S, Catalogue

INTERVAL_S = 0.05  # between two looks at rows that others have in hand
PATIENCE_S = HOLD_S + 5  # what a writer that was killed had in hand is free after HOLD_S


def write_in_turn(
    catalogue: Catalogue,
    collection: Collection,
    keys: Sequence[str],
    write: Callable[[list[str]], None],
) -> None:
    """Call `write` with the keys that no other writer has in hand, until all had their turn.

    Raises:
        Unavailable: others have some of the rows in hand for too long.
    """
    holder, waiting = secrets.token_hex(8), list(keys)
    until = time.monotonic() + PATIENCE_S
    while waiting:
        busy = catalogue.hold(collection, waiting, holder, HOLD_S)
        if free := [pk for pk in waiting if pk not in busy]:
            write(free)
            with suppress(Unavailable):  # they are free after HOLD_S
                catalogue.release(collection, free, holder)
        waiting = [pk for pk in waiting if pk in busy]
        if waiting and time.monotonic() > until:
            raise Unavailable(f"{len(waiting)} images are being written by others; try again")
        if waiting:
            time.sleep(INTERVAL_S)
