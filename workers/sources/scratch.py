"""Sorting of more entries than fit into memory, with SQLite in a temporary file."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice

from clipfleet.common.errors import Unavailable

CACHE_KB = 8_000  # SQLite's cache for pages and for each sort
MAX_IN_MEMORY = 10_000

Entry = tuple[bytes, int]


class ScratchUnavailable(Unavailable):
    """The temporary folder is full, or cannot be written."""


@contextmanager
def scratch() -> Iterator[sqlite3.Connection]:
    """An empty database in a temporary file, which is deleted after the `with` block.

    Other threads may use the database, one at a time.

    Raises:
        ScratchUnavailable: the temporary folder is full, or cannot be written.
    """
    try:
        with closing(
            sqlite3.connect("", isolation_level=None, check_same_thread=False)
        ) as database:
            database.execute(f"PRAGMA cache_size=-{CACHE_KB}")
            database.execute("PRAGMA journal_mode=OFF")
            yield database
    except sqlite3.OperationalError as error:
        raise ScratchUnavailable(
            "the planner cannot write to its temporary folder (environment variable TMPDIR): "
            f"{error}"
        ) from error


def in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Sort (name, number) entries by the bytes of the name.

    All entries are taken before the first one comes out. More than MAX_IN_MEMORY entries are sorted
    in a temporary file.
    """
    rest = iter(entries)
    few = sorted(islice(rest, MAX_IN_MEMORY))
    if len(few) < MAX_IN_MEMORY:
        yield from few
        return
    with scratch() as database:
        database.execute("CREATE TABLE entry (name BLOB, number INTEGER)")
        database.execute("BEGIN")
        database.executemany("INSERT INTO entry VALUES (?, ?)", chain(few, rest))
        database.execute("COMMIT")
        few.clear()
        yield from database.execute("SELECT name, number FROM entry ORDER BY name")
