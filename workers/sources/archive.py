"""Archives: tar, tar.gz (tar.zst where Python can), zip; local, from the web or from a bucket."""

import gzip
import importlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from clipfleet.common.errors import Unreadable
from clipfleet.common.http.sources import ArchiveSource
from clipfleet.common.identity import printable
from clipfleet.common.imaging.decode import SUFFIXES
from clipfleet.workers.sources.base import Interrupted, Listed, SourceError, resuming
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.sources.tar import Damaged, Refer, Tar
from clipfleet.workers.sources.zip import Zip
from clipfleet.workers.storage.locations import Storage

GZIP, ZSTD, ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\3\4", b"PK\5\6")
END = "end"  # the cursor behind what is said of the archive as a whole


class Archive:
    """An image's id is the archive's URI, `#`, and its name within."""

    def __init__(self, source: ArchiveSource, places: Storage, copies: Copies) -> None:
        self._uri, self._places, self._copies = source.uri, places, copies
        self._shown = printable(source.uri)

    def stream(self, after: str) -> Iterator[Listed]:
        return resuming(self._stream, after) if after != END else iter(())

    def _stream(self, after: str) -> Iterator[Listed]:
        opened = False
        try:
            place = self._places.find(self._uri)
            shown = place.partition(":")[2]
            with self._places.open(place) as file:
                begin = file.peek(4)[:4]  # type: ignore[attr-defined]
                opened = True
                if begin not in ZIP:
                    yield from self._tar(file, begin, place, shown, after)
                    return
            ensure_local = self._copies.ensure_local(place)
            with self._places.open(ensure_local) as file:
                yield from Zip(file, ensure_local, shown, self._places).stream(after)
        except Unreadable as error:
            kind = Interrupted if opened else SourceError
            raise kind(f"{self._shown} cannot be read: {error}") from error
        except Damaged as error:
            raise SourceError(
                f"the archive {self._shown} is damaged ({error}); what came before that is indexed"
            ) from error
        except zipfile.BadZipFile as error:
            raise SourceError(f"the archive {self._shown} is damaged: {error}") from error

    def _tar(
        self, file: BinaryIO, begin: bytes, place: str, uri: str, after: str
    ) -> Iterator[Listed]:
        with _unpacked(file, begin) as plain:
            at_random = plain is file and file.seekable()
            refer = _in_place(place) if at_random else self._copied
            tar = Tar(plain, uri, self._places.settings.limits, refer)
            try:
                yield from tar.stream(after)
            except Damaged as error:
                if isinstance(error.__cause__, tarfile.ReadError) and tar.nothing_read:
                    raise SourceError(f"{self._shown} is neither a tar nor a zip") from error
                raise
            if (said := tar.apart.item()) is not None:
                yield Listed(said, END)

    def _copied(self, found: tarfile.TarInfo, data: Callable[[], bytes]) -> str:
        return self._copies.keep(f"at-{found.offset}", data())

    def count(self) -> int:
        """Only a zip knows."""
        place = self._places.find(self._uri)
        if place.startswith("url:"):
            return 0
        with self._places.open(place) as file:
            if file.peek(4)[:4] not in ZIP:  # type: ignore[attr-defined]
                return 0
            return Zip(file, place, self._uri, self._places).count()

    def nothing_found(self) -> str:
        return f"no images in {self._shown} (looked for {' '.join(sorted(SUFFIXES))})"


def _in_place(place: str) -> Refer:
    return lambda found, _: f"part:{found.offset_data}:{found.size}:{place}"


@contextmanager
def _unpacked(file: BinaryIO, begin: bytes) -> Iterator[BinaryIO]:
    if begin == ZSTD:
        with _zstd(file) as plain:
            yield plain
    elif begin[:2] == GZIP:
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast("BinaryIO", unpacked)
    else:
        yield file


def _zstd(file: BinaryIO) -> Any:
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError as error:
        raise SourceError(
            "an archive packed with zstd needs Python 3.14; pack it with gzip, or not at all"
        ) from error
    return zstd.ZstdFile(file)
