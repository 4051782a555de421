"""Tar archives, member by member; nothing is ever unpacked to disk."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from clipfleet.common.identity import printable
from clipfleet.common.ledger import Item
from clipfleet.common.settings import Limits
from clipfleet.workers.sources.apart import ScatteredCaptions
from clipfleet.workers.sources.base import Listed
from clipfleet.workers.sources.samples import Member, counts, items

DROPPED = 1 << 20
MOST_HEADER = 16 << 20  # a header that claims more is damaged, or a trap
MOST_IN_GROUP = 1_000
BLOCK = 512

Refer = Callable[[tarfile.TarInfo, Callable[[], bytes]], str]
"""Where a member will be read; the callable gives its bytes now."""


class Damaged(Exception):
    """The archive cannot be read beyond this point."""


class Forward:
    """What tarfile reads from: only ever forward, so a stream will do."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._seekable = source, source.seekable()
        self._at = 0
        self.last = b""

    def read(self, size: int) -> bytes:
        if size > MOST_HEADER:
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
        """A member's own bytes; the caller knows how many it can bear."""
        data = self._source.read(size)
        self._at += len(data)
        return data


class Tar:
    """The cursor: where the group begins, and how many of its images are listed."""

    def __init__(self, file: BinaryIO, uri: str, limits: Limits, refer: Refer) -> None:
        self._file, self._uri, self._limits, self._refer = Forward(file), uri, limits, refer
        self._apart = ScatteredCaptions(uri)
        self.nothing_read = True

    def stream(self, after: str) -> Iterator[Listed]:
        """Damaged, once what came before the damage is listed."""
        offset, _, listed = after.partition(":")
        begin, skip = (int(offset), int(listed)) if after else (0, 0)
        self._file.seek(begin)
        for start, members in self._groups():
            for number, item in enumerate(self._items(members), 1):
                if start > begin or number > skip:
                    yield Listed(item, f"{start}:{number}")

    def _items(self, members: list[Member]) -> Iterator[Item]:
        self._apart.look(members)
        yield from items(self._uri, members, self._limits)

    @property
    def apart(self) -> ScatteredCaptions:
        return self._apart

    def _groups(self) -> Iterator[tuple[int, list[Member]]]:
        """Neighbours of one group, and where the first of them begins."""
        start, group = 0, list[Member]()
        try:
            for offset, member in self._members():
                same = group and group[0].group == member.group and len(group) < MOST_IN_GROUP
                if group and not same:
                    yield start, group
                    group = []
                if not group:
                    start = offset
                group.append(member)
        except (tarfile.TarError, Damaged, EOFError, zlib.error, OSError) as error:
            if group:
                yield start, group
            raise Damaged(_brief(error)) from error
        if group:
            yield start, group

    def _members(self) -> Iterator[tuple[int, Member]]:
        begin = self._file.tell()
        with tarfile.TarFile(fileobj=self._file, mode="r") as tar:  # type: ignore[arg-type]
            while found := tar.next():
                self.nothing_read = False
                tar.members.clear()  # type: ignore[attr-defined]  # or every member of the archive would stay in memory
                if (found.isreg() or found.issparse()) and counts(found.name):
                    yield found.offset, self._member(found)
        if self._file.last.strip(b"\0") and self._file.tell() > begin:
            raise Damaged(f"there is no header at byte {self._file.tell() - BLOCK}")

    def _member(self, found: tarfile.TarInfo) -> Member:
        problem = "it is a sparse file" if found.issparse() else None
        name = printable(found.name)
        member = Member(name, found.size, lambda: "", lambda most: self._data(found, most), problem)
        if member.is_sidecar and found.size <= self._limits.metadata_bytes:
            data = self._data(found, found.size)
            return Member(name, found.size, lambda: "", lambda _: data, problem)
        if problem or found.size > self._limits.image_bytes:
            return member
        read = self._refer(found, lambda: self._data(found, found.size))
        return Member(name, found.size, lambda: read, lambda _: b"", problem)

    def _data(self, found: tarfile.TarInfo, most: int) -> bytes:
        self._file.seek(found.offset_data)
        data = self._file.some(min(found.size, most))
        if len(data) < min(found.size, most):
            raise Damaged(f"it ends within {printable(found.name)!r}")
        return data


def _brief(error: Exception) -> str:
    """Without bytes of the file, which gzip quotes."""
    return "it is damaged gzip" if isinstance(error, gzip.BadGzipFile) else str(error)
