"""Manifests of lines: JSON lines, CSV, plain lists; local, on the web or in a bucket."""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, cast

from clipfleet.common.errors import Unreadable
from clipfleet.common.http.sources import ManifestSource
from clipfleet.common.identity import printable
from clipfleet.workers.sources.base import Interrupted, Listed, SourceError, resuming
from clipfleet.workers.sources.lines import Mark, lines
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.sources.rows import Rows
from clipfleet.workers.sources.text import Records, csv_header, csv_items, json_items, plain_items
from clipfleet.workers.storage.locations import Storage

GZIP = b"\x1f\x8b"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SAMPLE = 1 << 20
DROPPED = 1 << 20


class Lines:
    """A manifest of lines. The cursor is a byte offset and a line number.

    A local file or an object in a bucket is resumed with a seek. A compressed manifest, or one on
    the web, is read again up to the cursor.
    """

    def __init__(self, source: ManifestSource, storage: Storage, fields: Mapping[str, str]) -> None:
        self._format, self._storage, self._fields = source.table(), storage, fields
        self._uri, self.notes = source.uri, Notes()
        self._shown = printable(source.uri)

    def stream(self, after: str) -> Iterator[Listed]:
        return resuming(self._stream, after, self.notes)

    def _stream(self, after: str) -> Iterator[Listed]:
        opened = False
        try:
            location = self._storage.find(self._uri)
            plain = self._format == "txt"
            rows = Rows(self._storage, location, self._uri, self._fields, self.notes, plain=plain)
            with self._storage.open(location) as raw, _plain(raw) as file:
                opened = True
                yield from self._items(file, Mark.read(after), rows)
        except Unreadable as error:
            kind = Interrupted if opened else SourceError
            raise kind(f"the manifest {self._shown} cannot be read: {error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                f"the manifest {self._shown} is damaged gzip; the rows before that are listed"
            ) from error

    def _items(self, file: BinaryIO, mark: Mark, rows: Rows) -> Iterator[Listed]:
        if self._format == "csv":
            records = Records(lines(file, Mark()))
            names = csv_header(records)
            begin = records.after
            if mark.offset > begin.offset:
                _go_to(file, mark.offset, begin.offset)
                records = Records(lines(file, mark), records.delimiter)
            return csv_items(records, names, rows)
        _go_to(file, mark.offset, 0)
        parse = json_items if self._format == "jsonl" else plain_items
        return parse(lines(file, mark), rows)

    def count(self) -> int:
        """Estimate the rows from the size of the file and the length of its first lines."""
        location = self._storage.find(self._uri)
        if location.startswith("url:"):
            return 0
        with self._storage.open(location) as file:
            sample = file.read(SAMPLE)
            size = file.seek(0, 2)
        if sample.startswith(GZIP) or not sample:
            return 0
        return sample.count(b"\n") * size // len(sample)

    def nothing_found(self) -> str:
        return f"the manifest {self._shown} has no rows"


@contextmanager
def _plain(raw: BinaryIO) -> Iterator[BinaryIO]:
    """The unpacked file. Its first bytes decide: a server may have unpacked a .gz already."""
    begin = raw.peek(2)[:2]  # type: ignore[attr-defined]
    if begin in UTF_16:
        raise SourceError("the manifest is UTF-16; save it as UTF-8")
    if begin != GZIP:
        yield raw
        return
    with gzip.GzipFile(fileobj=raw) as unpacked:
        yield cast("BinaryIO", unpacked)


def _go_to(file: BinaryIO, offset: int, now: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while now < offset and (dropped := file.read(min(DROPPED, offset - now))):
        now += len(dropped)
