"""Archives: tar, packed with gzip, xz, bzip2 or (since Python 3.14) zstd, and zip.

They are local, on the web or in a bucket.
"""

import bz2
import gzip
import importlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from clipfleet.common.errors import Unreadable
from clipfleet.common.http.sources import ArchiveSource
from clipfleet.common.identity import printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.workers.sources.base import Interrupted, Listed, SourceError, resuming
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.sources.samples import ArchivePlace
from clipfleet.workers.sources.tar import Damaged, Refer, Tar
from clipfleet.workers.sources.unxz import Unxz
from clipfleet.workers.sources.values import Values
from clipfleet.workers.sources.zip import Zip
from clipfleet.workers.storage.locations import Storage

GZIP, ZSTD, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\3\4", b"PK\5\6")
XZ, BZIP2 = b"\xfd7zX", b"BZh"  # the first bytes; of xz the first four
END = "end"  # the cursor after the item that reports scattered captions


class Archive:
    """The images in an archive. An image's id is the archive's URI, `#`, and the member's name."""

    def __init__(
        self,
        source: ArchiveSource,
        storage: Storage,
        copies: Copies,
        fields: Mapping[str, str],
    ) -> None:
        self.notes = Notes()
        self._values = Values(fields, self.notes, storage.settings.limits.metadata_bytes)
        self._uri, self._storage, self._copies = source.uri, storage, copies
        self._shown, self._has_labels = printable(source.uri), source.label_from_folder

    def stream(self, after: str) -> Iterator[Listed]:
        return resuming(self._stream, after, self.notes) if after != END else iter(())

    def _stream(self, after: str) -> Iterator[Listed]:
        opened = False
        try:
            location = self._storage.find(self._uri)
            shown = location.partition(":")[2]
            with self._storage.open(location) as file:
                begin = file.peek(4)[:4]  # type: ignore[attr-defined]
                opened = True
                if begin not in ZIP:
                    yield from self._tar(file, begin, location, shown, after)
                    return
            local = self._copies.ensure_local(location)
            with self._storage.open(local) as file:
                yield from Zip(file, local, self._place(shown), self._storage, self._values).stream(
                    after
                )
        except Unreadable as error:
            kind = Interrupted if opened else SourceError
            raise kind(f"{self._shown} cannot be read: {error}") from error
        except Damaged as error:
            raise SourceError(
                f"the archive {self._shown} is damaged ({error}); images before that are indexed"
            ) from error
        except zipfile.BadZipFile as error:
            raise SourceError(f"the archive {self._shown} is damaged: {error}") from error

    def _tar(
        self, file: BinaryIO, begin: bytes, location: str, uri: str, after: str
    ) -> Iterator[Listed]:
        with _unpacked(file, begin) as plain:
            at_random = plain is file and file.seekable()
            refer = _part_of(location) if at_random else self._copied
            tar = Tar(plain, self._place(uri), self._storage.settings.limits, refer, self._values)
            try:
                yield from tar.stream(after)
            except Damaged as error:
                if isinstance(error.__cause__, tarfile.ReadError) and tar.nothing_read:
                    raise SourceError(f"{self._shown} is neither a tar nor a zip") from error
                raise
            if (item := tar.scattered.item()) is not None:
                yield Listed(item, END)

    def _copied(self, member: tarfile.TarInfo, data: Callable[[], bytes]) -> str:
        return self._copies.keep(f"at-{member.offset}", data())

    def count(self) -> int:
        """The number of images in a zip that is not on the web; other archives do not know it."""
        location = self._storage.find(self._uri)
        if location.startswith("url:"):
            return 0
        with self._storage.open(location) as file:
            if file.peek(4)[:4] not in ZIP:  # type: ignore[attr-defined]
                return 0
            place = self._place(self._uri)
            return Zip(file, location, place, self._storage, self._values).count()

    def _place(self, uri: str) -> ArchivePlace:
        return ArchivePlace(uri, self._has_labels)

    def nothing_found(self) -> str:
        return f"no images in {self._shown} (looked for {' '.join(sorted(SUFFIXES))})"


def _part_of(location: str) -> Refer:
    return lambda member, _: f"part:{member.offset_data}:{member.size}:{location}"


@contextmanager
def _unpacked(file: BinaryIO, begin: bytes) -> Iterator[BinaryIO]:
    if begin == ZSTD:
        with _zstd(file) as plain:
            yield plain
    elif begin[:2] == GZIP:
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast("BinaryIO", unpacked)
    elif begin == XZ:
        yield cast("BinaryIO", io.BufferedReader(Unxz(file)))
    elif begin[:3] == BZIP2:
        with bz2.BZ2File(file) as unbzipped:
            yield cast("BinaryIO", unbzipped)
    else:
        yield file


def _zstd(file: BinaryIO) -> Any:
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError as error:
        raise SourceError(
            "an archive packed with zstd needs Python 3.14; use gzip or no compression"
        ) from error
    return zstd.ZstdFile(file)
