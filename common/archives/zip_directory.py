"""The central directory at the end of a zip, which names its members; it is read as a stream."""

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
MAX_COMMENT_BYTES = 0xFFFF
SLICE, SLICE_BYTES = 1_000, 1 << 20  # members parsed at once, and the rough limit of their bytes


@dataclass(frozen=True)
class Directory:
    """The position of the central directory.

    Attributes:
        entries: the number of members; without ZIP64 it has 16 bits only.
        begin: the offset in the file at which the directory begins.
        size: the length of the directory in bytes.
        shift: the number of bytes before the zip; offsets in the directory do not count them.
    """

    entries: int
    begin: int
    size: int
    shift: int

    @classmethod
    def of(cls, file: BinaryIO) -> "Directory":
        """Find the directory from the end of the file.

        Raises:
            zipfile.BadZipFile: the file is not a zip.
        """
        length = file.seek(0, io.SEEK_END)
        tail_at = max(0, length - END.size - MAX_COMMENT_BYTES)
        tail = _read_at(file, tail_at, length - tail_at)
        position = _last_end(tail)
        end = tail_at + position
        _, _, entries, size, offset, _ = END.unpack_from(tail, position)
        before = END64.size + LOCATOR.size
        if end >= before and _is_zip64(_read_at(file, end - before, before)):
            _, entries, size, offset = END64.unpack(_read_at(file, end - before, END64.size))
            return cls._checked(entries, end - before, size, offset)
        return cls._checked(entries, end, size, offset)

    @classmethod
    def _checked(cls, entries: int, end: int, size: int, offset: int) -> "Directory":
        if end - size < 0:
            raise zipfile.BadZipFile("Bad offset for central directory")
        return cls(entries, end - size, size, end - size - offset)

    def members(self, file: BinaryIO) -> Iterator[zipfile.ZipInfo]:
        """The members in the order of the directory, parsed in slices.

        Raises:
            zipfile.BadZipFile: the directory is damaged.
        """
        file.seek(self.begin)
        remaining, number, records = self.size, 0, bytearray()
        while remaining > 0:
            record = _record(file)
            remaining -= len(record)
            records += record
            number += 1
            if number == SLICE or len(records) > SLICE_BYTES or remaining <= 0:
                yield from self._parsed(records, number)
                number, records = 0, bytearray()

    def _parsed(self, records: bytearray, number: int) -> list[zipfile.ZipInfo]:
        """Parse records with zipfile, as the directory of a small zip."""
        end = struct.pack("<4s4H2LH", END_MARK, 0, 0, number, number, len(records), 0, 0)
        with zipfile.ZipFile(io.BytesIO(bytes(records) + end)) as small:
            for info in small.filelist:
                info.header_offset += self.shift
            return small.filelist


def _last_end(tail: bytes) -> int:
    """The offset of the last end record whose comment fits; a comment may contain the mark."""
    position = tail.rfind(END_MARK)
    while position >= 0:
        if len(tail) - position >= END.size:
            *_, comment = END.unpack_from(tail, position)
            if position + END.size + comment <= len(tail):
                return position
        position = tail.rfind(END_MARK, 0, position)
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


def _is_zip64(before_end: bytes) -> bool:
    """Whether the bytes before the end record are those of a ZIP64 archive."""
    mark, disk, _, disks = LOCATOR.unpack(before_end[-LOCATOR.size :])
    if mark != LOCATOR_MARK:
        return False
    if disk != 0 or disks > 1:
        raise zipfile.BadZipFile("zipfiles that span multiple disks are not supported")
    return before_end[:4] == END64_MARK


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
