"""The bytes of one item, wherever they lie."""

import os
import stat

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.ledger import Item
from clipfleet.common.roots import really_below
from clipfleet.common.settings import Settings


def read_item(item: Item, blobs: Blobs, settings: Settings) -> bytes:
    """The whole file, or one byte more than the limit. Unreadable, or BlobsUnavailable."""
    kind, _, where = item.read.partition(":")
    limit = settings.limits.image_bytes
    if kind == "blob":
        try:
            return blobs.get(where, limit)
        except BlobGone as error:
            raise Unreadable("the uploaded file is gone") from error
    if kind != "file":
        raise Unreadable(f"unknown kind of place {kind!r}")
    if not really_below(where, settings.source_roots):
        raise Unreadable("the file lies outside the folders that may be indexed")
    try:
        return _read_file(where, limit)
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from error


def _read_file(path: str, limit: int) -> bytes:
    """Non-blocking, or a pipe named .jpg would hold the worker for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("it is no regular file")
        with open(descriptor, "rb", closefd=False) as source:
            return source.read(limit + 1)
    finally:
        os.close(descriptor)
