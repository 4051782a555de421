"""What a source has to sort and cannot hold in memory: in a temporary file, by SQLite."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice

from clipfleet.common.errors import Unavailable

CACHE_KB = 8_000  # of SQLite, for pages and for each sort
MOST_IN_MEMORY = 10_000

Entry = tuple[bytes, int]


class ScratchUnavailable(Unavailable):
    """The temporary folder is full, or cannot be written."""


@contextmanager
def scratch() -> Iterator[sqlite3.Connection]:
    """An empty database in a temporary file that goes with the `with` statement.

    Other threads may go on with it, one at a time.

    Raises:
        ScratchUnavailable: there is no room for it.
    """
    try:
        with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as made:
            made.execute(f"PRAGMA cache_size=-{CACHE_KB}")
            made.execute("PRAGMA journal_mode=OFF")
            yield made
    except sqlite3.OperationalError as error:
        raise ScratchUnavailable(
            "the temporary folder of the planner, which the environment variable TMPDIR names, "
            f"cannot be written: {error}"
        ) from error


def in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Names with a number each, sorted by the name's bytes. All are taken before the first comes
    out; more than MOST_IN_MEMORY of them go through a temporary file."""
    rest = iter(entries)
    few = sorted(islice(rest, MOST_IN_MEMORY))
    if len(few) < MOST_IN_MEMORY:
        yield from few
        return
    with scratch() as made:
        made.execute("CREATE TABLE entry (name BLOB, number INTEGER)")
        made.execute("BEGIN")
        made.executemany("INSERT INTO entry VALUES (?, ?)", chain(few, rest))
        made.execute("COMMIT")
        few.clear()
        yield from made.execute("SELECT name, number FROM entry ORDER BY name")
