"""Reads the bytes of one item: at a location, or inside an archive at a location."""

import struct
import zipfile
import zlib
from typing import Protocol

from clipfleet.common.errors import Unreadable

ZIP_HEADER = struct.Struct("<4s22xHH")
ZIP_SLACK = 2_048  # enough for most names and extra fields, so that one read suffices


class Places(Protocol):
    """Reads locations: `Storage`, and in feeders `LocalFiles`. Raises Unreadable and Unavailable.

    Attributes:
        image_bytes: the limit on the size of an image.
    """

    @property
    def image_bytes(self) -> int: ...

    def read(self, location: str, limit: int) -> bytes:
        """Read all bytes, or one byte more than the limit.

        Args:
            location: where the bytes are; see `locations.py`.
            limit: bytes.

        Raises:
            Unreadable: another try would not help.
            Unavailable: another try may help.
        """
        ...

    def read_part(self, location: str, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, or fewer where the bytes end before.

        Args:
            location: where the bytes are; see `locations.py`.
            offset: bytes from the beginning.
            size: bytes.

        Raises:
            Unreadable: another try would not help.
            Unavailable: another try may help.
        """
        ...


def read_item(read: str, places: Places) -> bytes:
    """Read a whole image; no archive is unpacked to disk.

    Args:
        read: `Item.read`. It is a location (see `locations.py`), `part:OFFSET:SIZE:LOCATION` for
            bytes of a file such as a tar, or `zip:OFFSET:SIZE:METHOD:CRC:LOCATION` for a member of
            a zip whose header is at OFFSET.

    Returns:
        The bytes of the image; of an image over the limit, one byte more than the limit.

    Raises:
        Unreadable: the image cannot be read, and another try would not help.
        Unavailable: another try may help.
    """
    limit = places.image_bytes
    kind, _, where = read.partition(":")
    if kind == "part":
        offset, size, location = where.split(":", 2)
        return _part(places, location, int(offset), int(size), limit)
    if kind == "zip":
        return unzipped(places, where, limit)
    return places.read(read, limit)


def _part(places: Places, location: str, offset: int, size: int, limit: int) -> bytes:
    data = places.read_part(location, offset, min(size, limit + 1))
    if len(data) < min(size, limit + 1):
        raise Unreadable("the archive ends inside this file")
    return data


def unzipped(places: Places, where: str, limit: int) -> bytes:
    """Read and unpack a member of a zip.

    Args:
        where: `OFFSET:SIZE:METHOD:CRC:LOCATION`, as in `read_item`.
        limit: the number of bytes after which unpacking stops.
    """
    at, packed, method, crc, location = where.split(":", 4)
    if int(packed) > limit + limit // 64 + ZIP_SLACK:
        raise Unreadable(f"the file is larger than the limit of {limit} bytes")
    raw = _packed(places, location, int(at), int(packed))
    data = raw if int(method) == zipfile.ZIP_STORED else _inflated(raw, limit)
    if len(data) <= limit and zlib.crc32(data) != int(crc):
        raise Unreadable("the file is damaged inside the archive (its checksum differs)")
    return data


def _packed(places: Places, location: str, at: int, size: int) -> bytes:
    head = places.read_part(location, at, ZIP_HEADER.size + ZIP_SLACK + size)
    if len(head) < ZIP_HEADER.size or head[:4] != b"PK\3\4":
        raise Unreadable("the archive is damaged or has changed")
    _, name, extra = ZIP_HEADER.unpack_from(head)
    begin = ZIP_HEADER.size + name + extra
    data = head[begin : begin + size]
    if begin > ZIP_HEADER.size + ZIP_SLACK:
        data = places.read_part(location, at + begin, size)
    if len(data) < size:
        raise Unreadable("the archive ends inside this file")
    return data


def _inflated(raw: bytes, limit: int) -> bytes:
    """Unpack at most one byte over the limit, which bounds decompression bombs."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, limit + 1)
    except zlib.error as error:
        raise Unreadable(f"the file is damaged inside the archive: {error}") from error
