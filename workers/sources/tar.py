"""Tar archives, read member by member; no archive is unpacked to disk."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from typing import BinaryIO, Self

from clipfleet.common.identity import printable
from clipfleet.common.ledger import Item
from clipfleet.common.settings import Limits
from clipfleet.workers.sources.base import Listed
from clipfleet.workers.sources.samples import (
    ArchivePlace,
    Member,
    ending,
    is_hidden,
    is_part_of_sample,
    items,
)
from clipfleet.workers.sources.scattered_captions import ScatteredCaptions
from clipfleet.workers.sources.values import Values

DROPPED = 1 << 20  # bytes skipped at once in a stream
MAX_HEADER_BYTES = 16 << 20  # a header that claims more is damaged or hostile
MAX_GROUP_MEMBERS = 1_000  # a larger group is split, between two stems if it can be
BLOCK = 512  # bytes of a header
CUT = "archives without the mark of their end, which may be cut off"

Refer = Callable[[tarfile.TarInfo, Callable[[], bytes]], str]
"""Returns the `read` of a member's item; the callable returns the member's bytes."""


class Damaged(Exception):
    """The archive cannot be read beyond this point."""


class Header(tarfile.TarInfo):
    """A header of a tar. Of a plain file, only what is used here is read: name and size."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> Self:  # type: ignore[override]
        try:
            header = cls._plain_file(buf, encoding, errors)
        except ValueError:  # a number that is not octal
            header = None
        return header or super().frombuf(buf, encoding, errors)

    @classmethod
    def _plain_file(cls, buf: bytes, encoding: str, errors: str) -> Self | None:
        """The header of a plain file; None for all others, which tarfile reads."""
        if len(buf) != BLOCK or buf[156:157] != tarfile.REGTYPE or buf[345]:  # a longer name
            return None
        checksum = int(buf[148:156].rstrip(b"\0 "), 8)
        if sum(buf[:148]) + 8 * ord(" ") + sum(buf[156:]) != checksum:
            return None
        header = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        header.size = int(buf[124:136].rstrip(b"\0 "), 8)
        header.chksum = checksum
        return header if header.size >= 0 else None


class Forward:
    """The file that tarfile reads: it moves forward only, so the source may be a stream.

    Attributes:
        last: the bytes of the last `read`.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._seekable = source, source.seekable()
        self._at = 0
        self.last = b""

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise Damaged(f"a header claims to have {size} bytes")
        self.last = self._source.read(size)
        self._at += len(self.last)
        return self.last

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> int:
        if self._seekable:
            self._at = self._source.seek(offset)
        while self._at < offset and (dropped := self._source.read(min(DROPPED, offset - self._at))):
            self._at += len(dropped)
        return self._at

    def some(self, size: int) -> bytes:
        """Read the bytes of a member; the caller limits `size`."""
        data = self._source.read(size)
        self._at += len(data)
        return data


class Tar:
    """The images in a tar. The cursor is the offset of a group and the number of its images listed.

    Args:
        place: the archive, as its images are named.
        refer: decides where workers read a member.
        values: reads the sidecars, and counts what is left out.

    Attributes:
        nothing_read: whether no header was read so far.
    """

    def __init__(
        self, file: BinaryIO, place: ArchivePlace, limits: Limits, refer: Refer, values: Values
    ) -> None:
        self._values, self._passed = values, list[str]()  # endings since the last item
        self._file, self._place, self._limits, self._refer = Forward(file), place, limits, refer
        self._scattered = ScatteredCaptions(place.uri)
        self.nothing_read, self._is_cut = True, False

    def stream(self, after: str) -> Iterator[Listed]:
        """List the images; raises Damaged after the images before the damage."""
        offset, _, listed = after.partition(":")
        begin, skip = (int(offset), int(listed)) if after else (0, 0)
        self._file.seek(begin)
        notes = self._values.notes
        counts = notes.copy()
        for start, members in self._groups():
            self._count_passed()
            for number, item in enumerate(self._items(members), 1):
                if start > begin or number > skip:
                    yield Listed(item, f"{start}:{number}")
                elif number == skip:
                    notes.restore(counts.copy())  # they were counted before the cursor
        self._count_passed()
        if self._is_cut:
            notes.remark(CUT)
            notes.gap()

    def _count_passed(self) -> None:
        for suffix in self._passed:
            self._values.notes.leave_out(suffix)
        self._passed.clear()

    def _items(self, members: list[Member]) -> Iterator[Item]:
        self._scattered.add(members)
        yield from items(self._place, members, self._limits, self._values)

    @property
    def scattered(self) -> ScatteredCaptions:
        """The captions that were not next to their image, so far."""
        return self._scattered

    def _groups(self) -> Iterator[tuple[int, list[Member]]]:
        """(offset of the first member, members) of neighbours that belong to one group."""
        start, group = 0, list[Member]()
        try:
            for offset, member in self._members():
                if group and not _joins(group, member):
                    yield start, group
                    group = []
                if not group:
                    start = offset
                group.append(member)
        except (tarfile.TarError, Damaged, EOFError, zlib.error, OSError, LZMAError) as error:
            if group:
                yield start, group
            raise Damaged(_brief(error)) from error
        if group:
            yield start, group

    def _members(self) -> Iterator[tuple[int, Member]]:
        begin = self._file.tell()
        with tarfile.TarFile(fileobj=self._file, mode="r", tarinfo=Header) as tar:  # type: ignore[arg-type]
            while info := tar.next():
                self.nothing_read = False
                tar.members.clear()  # type: ignore[attr-defined]  # or every member of the archive would stay in memory
                if not (info.isreg() or info.issparse()) or is_hidden(info.name):
                    continue
                if is_part_of_sample(info.name):
                    yield info.offset, self._member(info)
                else:
                    self._passed.append(ending(info.name.rpartition("/")[2]))
        if self._file.last.strip(b"\0") and self._file.tell() > begin:
            raise Damaged(f"there is no header at byte {self._file.tell() - BLOCK}")
        self._is_cut = not self._file.last

    def _member(self, info: tarfile.TarInfo) -> Member:
        problem = "it is a sparse file" if info.issparse() else None
        name = printable(info.name)
        member = Member(name, info.size, lambda: "", lambda limit: self._data(info, limit), problem)
        if member.is_sidecar and info.size <= self._limits.metadata_bytes:
            data = self._data(info, info.size)
            return Member(name, info.size, lambda: "", lambda _: data, problem)
        if problem or info.size > self._limits.image_bytes:
            return member
        read = self._refer(info, lambda: self._data(info, info.size))
        member.read, member.data = lambda: read, lambda _: b""  # the stream moves on
        return member

    def _data(self, info: tarfile.TarInfo, limit: int) -> bytes:
        self._file.seek(info.offset_data)
        data = self._file.some(min(info.size, limit))
        if len(data) < min(info.size, limit):
            raise Damaged(f"the archive ends inside {printable(info.name)!r}")
        return data


def _joins(group: list[Member], member: Member) -> bool:
    """Whether a member belongs to the group of those before it."""
    if group[0].group != member.group or len(group) >= 2 * MAX_GROUP_MEMBERS:
        return False
    return len(group) < MAX_GROUP_MEMBERS or group[-1].stem == member.stem


def _brief(error: Exception) -> str:
    """The error's text, except for gzip's, which quotes bytes of the file."""
    return "it is damaged gzip" if isinstance(error, gzip.BadGzipFile) else str(error)
