"""The bytes of one item, wherever they lie: at a place, or inside of an archive at a place."""

import struct
import zipfile
import zlib

from clipfleet.common.errors import Unreadable
from clipfleet.common.ledger import Item
from clipfleet.workers.storage.locations import Storage

ZIP_HEADER = struct.Struct("<4s22xHH")
ZIP_SLACK = 2_048  # what name and extra fields usually need, so that one reading does


def read_item(item: Item, places: Storage) -> bytes:
    """The whole image, or one byte more than the limit. Unreadable, or Unavailable.

    `part:OFFSET:SIZE:PLACE` is a stretch of a file, as in a tar; `zip:OFFSET:SIZE:METHOD:CRC:PLACE`
    a member of a zip, by the place of its header. Nothing is ever unpacked to disk.
    """
    limit = places.settings.limits.image_bytes
    kind, _, where = item.read.partition(":")
    if kind == "part":
        offset, size, place = where.split(":", 2)
        return _part(places, place, int(offset), int(size), limit)
    if kind == "zip":
        return unzipped(places, where, limit)
    return places.read(item.read, limit)


def _part(places: Storage, place: str, offset: int, size: int, limit: int) -> bytes:
    data = places.read_part(place, offset, min(size, limit + 1))
    if len(data) < min(size, limit + 1):
        raise Unreadable("the archive ends within it")
    return data


def unzipped(places: Storage, where: str, limit: int) -> bytes:
    at, packed, method, crc, place = where.split(":", 4)
    if int(packed) > limit + limit // 64 + ZIP_SLACK:
        raise Unreadable(f"it is larger than the limit of {limit} bytes")
    raw = _packed(places, place, int(at), int(packed))
    data = raw if int(method) == zipfile.ZIP_STORED else _inflated(raw, limit)
    if len(data) <= limit and zlib.crc32(data) != int(crc):
        raise Unreadable("it is damaged within the archive (its checksum differs)")
    return data


def _packed(places: Storage, place: str, at: int, size: int) -> bytes:
    head = places.read_part(place, at, ZIP_HEADER.size + ZIP_SLACK + size)
    if len(head) < ZIP_HEADER.size or head[:4] != b"PK\3\4":
        raise Unreadable("the archive is damaged or has changed")
    _, name, extra = ZIP_HEADER.unpack_from(head)
    begin = ZIP_HEADER.size + name + extra
    data = head[begin : begin + size]
    if begin > ZIP_HEADER.size + ZIP_SLACK:
        data = places.read_part(place, at + begin, size)
    if len(data) < size:
        raise Unreadable("the archive ends within it")
    return data


def _inflated(raw: bytes, limit: int) -> bytes:
    """No more than one byte over the limit, whatever a bomb unpacks to."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, limit + 1)
    except zlib.error as error:
        raise Unreadable(f"it is damaged within the archive: {error}") from error
