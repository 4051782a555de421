"""All rows of a collection in the order of their keys, read range by range.

No order can be asked of a query, and the rows that a limited one leaves out may be any (milvus-lite
3.2 gives them as its segments lie; a server sorts them, without saying so). So a range of keys is
read whole or, when it holds too much, read again as a smaller one. Keys are hashes, spread evenly:
from how many rows there are follows how wide a range should be.
"""

from collections.abc import Callable
from typing import TypeVar

KEYS = 2**128  # 32 hex digits
LAST = f"{KEYS - 1:032x}"
LARGEST_READ = 8_000  # a server gives at most 16,384 rows, and we ask for twice as many as wanted
WIDEN = 16

T = TypeVar("T")
# (above, up to and including, at most so many rows): those of them that there are, in any order
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
    """The first `limit` rows whose key comes after `after`; fewer only when there are no more.

    `rows`: about how many there are in all. `largest`: how many one read should bring.
    """
    found: list[T] = []
    low = after
    width = _width(min(limit, largest), rows, KEYS)
    while len(found) < limit and low != LAST:
        wanted = min(limit - len(found), largest)
        high = _text(min(_number(low) + width, KEYS - 1))
        part = read(low, high, 2 * wanted + 100)
        if len(part) >= 2 * wanted + 100:  # and who knows which were left out
            width = max(1, width // 2)
            continue
        found += sorted(part, key=key)
        low = high
        wanted = min(limit - len(found), largest)
        width = min(_width(wanted, len(part), width), WIDEN * width)
    return found[:limit]


def _width(wanted: int, rows: int, width: int) -> int:
    """Where a range of this width holds so many rows: one that very likely holds those wanted."""
    hoped = wanted + 3 * int(max(wanted, 1) ** 0.5) + 3
    return max(1, min(KEYS, width * hoped // max(rows, 1)))


def _number(key: str) -> int:
    return int(key, 16) if key else -1


def _text(number: int) -> str:
    return f"{number:032x}"
