"""Finds a member of a tar or zip by its name. The names of the archives asked for last are kept."""

import io
import struct
import tarfile
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, cast

from clipfleet.api.originals.content import Content, Inflated, Window
from clipfleet.common.archives.zip_directory import Directory
from clipfleet.common.errors import Gone, NotFound, Unavailable
from clipfleet.common.identity import printable

SEARCH_S = 5.0  # for one request; the next one goes on from there
MAX_ARCHIVES = 4  # whose names are kept
MAX_NAMES = 500_000  # of one archive
BUFFER = 1 << 16  # read at once
MAX_HEADER_BYTES = 16 << 20  # of a tar; a header that claims more is damaged or hostile
ZIP_HEADER = struct.Struct("<4s22xHH")
ENCRYPTED = 1  # flag bit of a zip
ZIP = (b"PK\3\4", b"PK\5\6")
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zX", b"BZh")


class Spot(NamedTuple):
    """Where a member is.

    Attributes:
        offset: of its bytes in a tar, of its header in a zip.
        packed: the number of its bytes in the archive.
        size: the number of its bytes.
        method: 0 for bytes as they are, 8 for deflate, -1 for others.
        is_zip: whether `offset` is that of a zip's header.
    """

    offset: int
    packed: int
    size: int
    method: int
    is_zip: bool


class _Names:
    """The members of one archive, as far as they are known.

    Args:
        archive: open content, which is read as long as this object exists.
    """

    def __init__(self, archive: Content) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, Spot] = {}
        self._archive, self._rest = archive, _members(archive)

    def find(self, name: str, shown: str) -> Spot | None:
        """The spot of a member; None if there is none. Raises Unavailable when that takes long."""
        until = time.monotonic() + SEARCH_S
        if not self._lock.acquire(timeout=SEARCH_S):
            raise _takes_long(shown)
        try:
            while name not in self._names:
                if time.monotonic() > until:
                    raise _takes_long(shown)
                if len(self._names) > MAX_NAMES:
                    raise NotFound(f"{shown} has more than {MAX_NAMES} files: too many to look in")
                if (following := self._next()) is None:
                    return None
                member, spot = following
                self._names[member] = spot
            return self._names[name]
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError) as error:
            raise Gone(f"{shown} is damaged, or no tar or zip any more") from error
        finally:
            self._lock.release()

    def _next(self) -> tuple[str, Spot] | None:
        """The member that comes next; after an error the next call begins anew."""
        try:
            return next(self._rest, None)
        except BaseException:
            self._rest = _members(self._archive)
            raise


class Archives:
    """Opens members of archives."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Names] = OrderedDict()
        self._lock = threading.Lock()

    def member(self, open_archive: Callable[[], Content], name: str, shown: str) -> Content:
        """Open a member.

        Args:
            open_archive: opens the archive, and checks that it may be read.
            name: the path of the member.
            shown: the archive, for messages.

        Raises:
            NotFound: the archive is of a kind whose members cannot be read.
            Gone: the member is not there any more.
            Unavailable: the search takes longer; the next request goes on with it.
        """
        archive = open_archive()
        try:
            spot = self._names_of(archive, open_archive).find(name, shown)
            if spot is None:
                raise Gone(f"{printable(name)!r} is not in {shown} any more")
            if not spot.is_zip:
                return Window(archive, spot.offset, spot.size)
            return _of_zip(archive, spot, name)
        except BaseException:
            archive.close()
            raise

    def _names_of(self, archive: Content, open_archive: Callable[[], Content]) -> _Names:
        begin = archive.read(0, 4)
        if begin.startswith(PACKED):
            raise NotFound(
                "the image is in a tar that is packed as a whole, so that single files cannot be "
                "read; unpack it, or use a tar without compression or a zip"
            )
        with self._lock:
            names = self._known.get(archive.tag)
            if names is None:
                names = self._known[archive.tag] = _Names(open_archive())
            self._known.move_to_end(archive.tag)
            if len(self._known) > MAX_ARCHIVES:
                self._known.popitem(last=False)  # closes itself when nobody uses it
            return names


def _takes_long(shown: str) -> Unavailable:
    return Unavailable(f"{shown} has many files, and is still being looked through; try again")


def _of_zip(archive: Content, spot: Spot, name: str) -> Content:
    head = archive.read(spot.offset, ZIP_HEADER.size) if spot.offset >= 0 else b""
    if len(head) < ZIP_HEADER.size or head[:4] != ZIP[0]:
        raise Gone(f"the archive of {printable(name)!r} is damaged, or has changed")
    _, name_bytes, extra = ZIP_HEADER.unpack(head)
    begin = spot.offset + ZIP_HEADER.size + name_bytes + extra
    if spot.method == zipfile.ZIP_STORED:
        return Window(archive, begin, spot.size)
    if spot.method == zipfile.ZIP_DEFLATED:
        return Inflated(archive, begin, spot.packed, spot.size)
    raise NotFound(f"{printable(name)!r} is encrypted, or packed by another method than deflate")


def _members(archive: Content) -> Iterator[tuple[str, Spot]]:
    """The files in an archive."""
    file = cast("BinaryIO", io.BufferedReader(_File(archive), BUFFER))
    if archive.read(0, 4) in ZIP:
        yield from _zip_members(file)
    else:
        yield from _tar_members(file)


def _zip_members(file: BinaryIO) -> Iterator[tuple[str, Spot]]:
    for info in Directory.of(file).members(file):
        method = -1 if info.flag_bits & ENCRYPTED else info.compress_type
        spot = Spot(info.header_offset, info.compress_size, info.file_size, method, is_zip=True)
        yield printable(info.filename), spot


def _tar_members(file: BinaryIO) -> Iterator[tuple[str, Spot]]:
    with tarfile.TarFile(fileobj=_Bounded(file), mode="r") as tar:  # type: ignore[arg-type]
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # or all of them would stay in memory
            if info.isreg() and not info.issparse():
                spot = Spot(info.offset_data, info.size, info.size, 0, is_zip=False)
                yield printable(info.name), spot


class _Bounded:
    """The file that tarfile reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise ValueError("a header of the tar claims to be very large")
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)


class _File(io.RawIOBase):
    """Content as a file of Python."""

    def __init__(self, content: Content) -> None:
        self._content, self._at = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = cast("memoryview", buffer)
        data = self._content.read(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._content.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at
