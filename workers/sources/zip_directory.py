"""The central directory of a zip, which names its members: found at the end, read as a stream."""

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

HEADER = struct.Struct("<4s24x3H12x")  # the lengths of name, extra fields and comment
END = struct.Struct("<4s4x2H2LH")
LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4s28x3Q")
MEMBER_MARK, END_MARK = b"PK\1\2", b"PK\5\6"
LOCATOR_MARK, END64_MARK = b"PK\6\7", b"PK\6\6"
MOST_COMMENT = 0xFFFF
SLICE, SLICE_BYTES = 1_000, 1 << 20  # members parsed at once, and about how many bytes of them


@dataclass(frozen=True)
class Directory:
    """Where the central directory lies.

    Attributes:
        entries: how many members it has. Without ZIP64 the number has 16 bits only.
        begin: the byte in the file at which it begins.
        size: its length in bytes.
        shift: the bytes that lie before the zip; offsets in the directory do not count them.
    """

    entries: int
    begin: int
    size: int
    shift: int

    @classmethod
    def of(cls, file: BinaryIO) -> "Directory":
        """Read the end of the file. BadZipFile when it is not that of a zip."""
        length = file.seek(0, io.SEEK_END)
        tail_at = max(0, length - END.size - MOST_COMMENT)
        tail = _at(file, tail_at, length - tail_at)
        found = _last_end(tail)
        end = tail_at + found
        _, _, entries, size, offset, _ = END.unpack_from(tail, found)
        before = END64.size + LOCATOR.size
        if end >= before and _is_64(_at(file, end - before, before)):
            _, entries, size, offset = END64.unpack(_at(file, end - before, END64.size))
            return cls._checked(entries, end - before, size, offset)
        return cls._checked(entries, end, size, offset)

    @classmethod
    def _checked(cls, entries: int, end: int, size: int, offset: int) -> "Directory":
        if end - size < 0:
            raise zipfile.BadZipFile("Bad offset for central directory")
        return cls(entries, end - size, size, end - size - offset)

    def members(self, file: BinaryIO) -> Iterator[zipfile.ZipInfo]:
        """All of them in their order, parsed some at a time. BadZipFile where it is damaged."""
        file.seek(self.begin)
        left, number, records = self.size, 0, bytearray()
        while left > 0:
            record = _record(file)
            left -= len(record)
            records += record
            number += 1
            if number == SLICE or len(records) > SLICE_BYTES or left <= 0:
                yield from self._parsed(records, number)
                number, records = 0, bytearray()

    def _parsed(self, records: bytearray, number: int) -> list[zipfile.ZipInfo]:
        """By zipfile, which takes them for those of a small zip."""
        end = struct.pack("<4s4H2LH", END_MARK, 0, 0, number, number, len(records), 0, 0)
        with zipfile.ZipFile(io.BytesIO(bytes(records) + end)) as small:
            for info in small.filelist:
                info.header_offset += self.shift
            return small.filelist


def _last_end(tail: bytes) -> int:
    """Where the end record begins: the last one whose comment fits. A comment may hold its mark."""
    found = tail.rfind(END_MARK)
    while found >= 0:
        if len(tail) - found >= END.size:
            *_, comment = END.unpack_from(tail, found)
            if found + END.size + comment <= len(tail):
                return found
        found = tail.rfind(END_MARK, 0, found)
    raise zipfile.BadZipFile("File is not a zip file")


def _record(file: BinaryIO) -> bytes:
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise zipfile.BadZipFile("Truncated central directory")
    mark, *lengths = HEADER.unpack(head)
    if mark != MEMBER_MARK:
        raise zipfile.BadZipFile("Bad magic number for central directory")
    rest = file.read(sum(lengths))
    if len(rest) < sum(lengths):
        raise zipfile.BadZipFile("Truncated central directory")
    return head + rest


def _is_64(before_end: bytes) -> bool:
    """Of the bytes before the end record."""
    mark, disk, _, disks = LOCATOR.unpack(before_end[-LOCATOR.size :])
    if mark != LOCATOR_MARK:
        return False
    if disk != 0 or disks > 1:
        raise zipfile.BadZipFile("zipfiles that span multiple disks are not supported")
    return before_end[:4] == END64_MARK


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)
