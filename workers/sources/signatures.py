"""Signatures: numbers that change when an image changes, without a look into the image.

A signature of 0 is that of an image about which nothing is known: it is always read.
"""

import os
import struct
import time
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from clipfleet.common.ledger import Item

UNKNOWN = 0
_MASK = (1 << 61) - 1  # beside the kind of an entry, in a number of SQLite
_STAT = struct.Struct("<qqq")
# A file may change twice between two ticks of the file system's clock, and its times then show only
# the first change. Linux ticks every 1 to 10 ms; FAT and some servers every 1 to 2 s.
TICK_NS = 100_000_000
COARSE_TICK_NS = 2_500_000_000
SECOND_NS = 1_000_000_000
# What listings of buckets say about the content of an object; s3, gs and az.
_OF_OBJECT = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "last_modified")


def of_stat(stat: os.stat_result, now_ns: int | None = None) -> int:
    """The signature of a file, from its size, its modification and its change of status.

    A program can set the time of the modification, but not that of the change of status.

    Args:
        stat: the file.
        now_ns: unix time, nanoseconds; None: the present.

    Returns:
        The signature; UNKNOWN for a file that has changed just now.
    """
    changed_ns = stat.st_ctime_ns
    tick_ns = TICK_NS if changed_ns % SECOND_NS else COARSE_TICK_NS
    if changed_ns > (time.time_ns() if now_ns is None else now_ns) - tick_ns:
        return UNKNOWN
    return _number(_STAT.pack(stat.st_size, stat.st_mtime_ns, changed_ns))


def of_entry(entry: "os.DirEntry[str]") -> int:
    """The signature of a file in a folder that is being listed."""
    try:
        return of_stat(entry.stat())
    except OSError:  # a broken link, or the file is gone
        return UNKNOWN


def of_file(path: str) -> int:
    """The signature of a file."""
    try:
        return of_stat(os.stat(path))
    except (OSError, ValueError):
        return UNKNOWN


def of_object(entry: Mapping[str, Any]) -> int:
    """The signature of an object in the listing of a bucket."""
    values = [str(entry[name]) for name in _OF_OBJECT if entry.get(name)]
    size = entry.get("Size", entry.get("size", ""))
    return of_text(f"{size} {values}") if values else UNKNOWN


def of_text(text: str) -> int:
    """The signature of a text."""
    return _number(text.encode("utf-8", "surrogatepass"))


def of_item(item: Item) -> int:
    """The signature of what an item refers to, for sources that list none.

    The text alone decides for what is on the web or in a bucket. The members of a zip are listed
    with their checksums.
    """
    kind, _, where = item.read.partition(":")
    if kind == "part":
        _, _, where = where.split(":", 2)
        kind, _, where = where.partition(":")
        return _joined(of_file(where), item.read) if kind == "file" else UNKNOWN
    if kind == "file":
        return _joined(of_file(where), item.read)
    return of_text(item.read) if kind in ("zip", "url", "fs") else UNKNOWN


def _joined(signature: int, text: str) -> int:
    return of_text(f"{signature} {text}") if signature else UNKNOWN


def _number(data: bytes) -> int:
    return (int.from_bytes(blake2b(data, digest_size=8).digest()) & _MASK) or 1
