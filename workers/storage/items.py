"""Reads the bytes of one item: at a location, or inside an archive at a location."""

import struct
import zipfile
import zlib

from clipfleet.common.errors import Unreadable
from clipfleet.common.ledger import Item
from clipfleet.workers.storage.locations import Storage

ZIP_HEADER = struct.Struct("<4s22xHH")
ZIP_SLACK = 2_048  # enough for most names and extra fields, so that one read suffices


def read_item(item: Item, storage: Storage) -> bytes:
    """Read a whole image; no archive is unpacked to disk.

    `item.read` is a location (see `Storage`), `part:OFFSET:SIZE:LOCATION` for bytes of a file such
    as a tar, or `zip:OFFSET:SIZE:METHOD:CRC:LOCATION` for a member of a zip whose header is at
    OFFSET.

    Returns:
        The bytes of the image; of an image over the limit, one byte more than the limit.

    Raises:
        Unreadable: the image cannot be read, and another try would not help.
        Unavailable: another try may help.
    """
    limit = storage.settings.limits.image_bytes
    kind, _, where = item.read.partition(":")
    if kind == "part":
        offset, size, location = where.split(":", 2)
        return _part(storage, location, int(offset), int(size), limit)
    if kind == "zip":
        return unzipped(storage, where, limit)
    return storage.read(item.read, limit)


def _part(storage: Storage, location: str, offset: int, size: int, limit: int) -> bytes:
    data = storage.read_part(location, offset, min(size, limit + 1))
    if len(data) < min(size, limit + 1):
        raise Unreadable("the archive ends inside this file")
    return data


def unzipped(storage: Storage, where: str, limit: int) -> bytes:
    """Read and unpack a member of a zip.

    Args:
        where: `OFFSET:SIZE:METHOD:CRC:LOCATION`, as in `read_item`.
        limit: the number of bytes after which unpacking stops.
    """
    at, packed, method, crc, location = where.split(":", 4)
    if int(packed) > limit + limit // 64 + ZIP_SLACK:
        raise Unreadable(f"the file is larger than the limit of {limit} bytes")
    raw = _packed(storage, location, int(at), int(packed))
    data = raw if int(method) == zipfile.ZIP_STORED else _inflated(raw, limit)
    if len(data) <= limit and zlib.crc32(data) != int(crc):
        raise Unreadable("the file is damaged inside the archive (its checksum differs)")
    return data


def _packed(storage: Storage, location: str, at: int, size: int) -> bytes:
    head = storage.read_part(location, at, ZIP_HEADER.size + ZIP_SLACK + size)
    if len(head) < ZIP_HEADER.size or head[:4] != b"PK\3\4":
        raise Unreadable("the archive is damaged or has changed")
    _, name, extra = ZIP_HEADER.unpack_from(head)
    begin = ZIP_HEADER.size + name + extra
    data = head[begin : begin + size]
    if begin > ZIP_HEADER.size + ZIP_SLACK:
        data = storage.read_part(location, at + begin, size)
    if len(data) < size:
        raise Unreadable("the archive ends inside this file")
    return data


def _inflated(raw: bytes, limit: int) -> bytes:
    """Unpack at most one byte over the limit, which bounds decompression bombs."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, limit + 1)
    except zlib.error as error:
        raise Unreadable(f"the file is damaged inside the archive: {error}") from error
