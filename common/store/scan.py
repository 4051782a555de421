"""Reads the rows of a collection in the order of their keys, range by range.

Milvus cannot sort the rows of a query, and a query with a limit may leave out any rows (milvus-lite
3.2 returns them in the order of its segments; a server sorts them, which is not documented). So a
range of keys is read completely or, when it has too many rows, read again as a smaller range. Keys
are hashes and evenly distributed, so the number of rows determines how wide a range should be.
"""

from collections.abc import Callable
from typing import TypeVar

KEYS = 2**128  # 32 hex digits
LAST = f"{KEYS - 1:032x}"
LARGEST_READ = 8_000  # a server returns 16,384 rows at most; a read asks for about twice this
WIDEN = 16  # the largest factor by which one range is wider than the range before

T = TypeVar("T")
# (above, up to and including, limit): rows in that range of keys, in any order
Read = Callable[[str, str, int], list[T]]


def in_order(
    read: Read[T],
    key: Callable[[T], str],
    *,
    after: str,
    limit: int,
    rows: int,
    largest: int = LARGEST_READ,
) -> list[T]:
    """The first `limit` rows with a key above `after`; fewer only when there are no more.

    Args:
        read: reads a range of keys.
        key: returns the key of a row.
        rows: the approximate number of rows in the collection.
        largest: the number of rows that one read should return at most.
    """
    rows_in_order: list[T] = []
    low = after
    width = _width(min(limit, largest), rows, KEYS)
    while len(rows_in_order) < limit and low != LAST:
        missing = min(limit - len(rows_in_order), largest)
        high = _text(min(_number(low) + width, KEYS - 1))
        page = read(low, high, 2 * missing + 100)
        if len(page) >= 2 * missing + 100:  # any rows may be left out
            width = max(1, width // 2)
            continue
        rows_in_order += sorted(page, key=key)
        low = high
        missing = min(limit - len(rows_in_order), largest)
        width = min(_width(missing, len(page), width), WIDEN * width)
    return rows_in_order[:limit]


def _width(needed: int, rows: int, width: int) -> int:
    """The width of a range that very likely has the needed rows.

    Args:
        needed: the number of rows that are needed.
        rows: the number of rows in a range of `width`.
    """
    aimed = needed + 3 * int(max(needed, 1) ** 0.5) + 3
    return max(1, min(KEYS, width * aimed // max(rows, 1)))


def _number(key: str) -> int:
    return int(key, 16) if key else -1


def _text(number: int) -> str:
    return f"{number:032x}"
