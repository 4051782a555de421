"""The protocol that every kind of source implements."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from clipfleet.common.http.suffixes import ending_of as ending_of
from clipfleet.common.ledger import Item
from clipfleet.workers.sources.notes import Notes


class SourceError(Exception):
    """The source as a whole cannot be read; the text becomes the job's `error`."""


class Interrupted(SourceError):
    """Reading broke off; resuming at the last cursor may help."""


class Listed(NamedTuple):
    """An item of a source.

    Attributes:
        cursor: where the source resumes after this item.
        signature: changes with the image, see `signatures.py`; 0: unknown.
    """

    item: Item
    cursor: str
    signature: int = 0


class Source(Protocol):
    """A source of a job's images.

    Attributes:
        notes: counts what `stream` leaves out or changes, as far as it was read.
    """

    notes: Notes

    def stream(self, after: str) -> Iterator[Listed]:
        """List the items in a fixed order.

        An item that cannot be listed properly has a `problem` and fails alone.

        Args:
            after: the cursor of the last item that was listed before; "" for the beginning.

        Returns:
            An iterator that reads the source as it is used.

        Raises:
            SourceError: the source as a whole cannot be read.
            Unavailable: another try may help.
        """
        ...

    def count(self) -> int:
        """Estimate the number of items quickly.

        Returns:
            The estimate, or 0 if the whole source would have to be read.

        Raises:
            SourceError, Unreadable, Unavailable: as reading the source does.
        """
        ...

    def nothing_found(self) -> str:
        """Word the job's error for a source without items.

        Returns:
            One sentence without a full stop, which names the source and what was looked for; "":
            that is no error. It does not read the source.
        """
        ...


MAX_TRIES = 4  # without an item in between


def resuming(
    stream: Callable[[str], Iterator[Listed]], after: str, notes: Notes
) -> Iterator[Listed]:
    """Resume a stream where it broke off, until it fails MAX_TRIES times without an item.

    Args:
        notes: the counts of the stream; what is listed again is counted once.
    """
    tries = 0
    while True:
        counts = notes.copy()
        try:
            for entry in stream(after):
                after, tries = entry.cursor, 0
                yield entry
                counts = notes.copy()
            return
        except Interrupted:
            notes.restore(counts)
            tries += 1
            if tries >= MAX_TRIES:
                raise
