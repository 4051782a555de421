"""What every kind of source is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from clipfleet.common.ledger import Item


class SourceError(Exception):
    """The source as a whole cannot be read; the text says why, for the job's `error`."""


class Interrupted(SourceError):
    """It broke off; going on at the last cursor may help."""


@dataclass(frozen=True)
class Listed:
    item: Item
    cursor: str


class Source(Protocol):
    """`stream` raises SourceError; an item that cannot be read carries its `problem`."""

    def stream(self, after: str) -> Iterator[Listed]: ...

    def count(self) -> int:
        """How many items there are, roughly and soon; 0 where only reading it all would tell."""
        ...

    def nothing_found(self) -> str: ...


TRIES = 4


def resuming(stream: Callable[[str], Iterator[Listed]], after: str) -> Iterator[Listed]:
    """Goes on where it broke off, until it breaks off several times without a step between."""
    tries = 0
    while True:
        try:
            for one in stream(after):
                after, tries = one.cursor, 0
                yield one
            return
        except Interrupted:
            tries += 1
            if tries >= TRIES:
                raise
