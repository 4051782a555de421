"""Zip archives, listed from the directory at their end, which has the offset of every member."""

import sqlite3
import zipfile
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from clipfleet.common.errors import Unreadable
from clipfleet.common.identity import printable
from clipfleet.workers.sources.base import Listed
from clipfleet.workers.sources.samples import Member, SidecarData, counts, item_of, sidecar_data
from clipfleet.workers.sources.scratch import scratch
from clipfleet.workers.sources.zip_directory import Directory
from clipfleet.workers.storage.items import unzipped
from clipfleet.workers.storage.locations import Storage

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # flag bit
SAMPLE = 10_000  # members from which the number of images is estimated
MAX_SIDECARS = 1_000  # of one group

TABLES = (
    "CREATE TABLE member (number INTEGER PRIMARY KEY, family TEXT, is_image INTEGER, name TEXT,"
    " size INTEGER, spot TEXT, problem TEXT)",
    "CREATE INDEX sidecars ON member (family) WHERE NOT is_image",
)
IMAGES = (
    "SELECT first, family, name, size, spot, problem"
    " FROM (SELECT *, min(number) OVER (PARTITION BY family) AS first FROM member)"
    " WHERE is_image ORDER BY first, number LIMIT -1 OFFSET ?"
)
ANY_SIDECAR = "SELECT EXISTS (SELECT 1 FROM member WHERE NOT is_image)"
SIDECARS = (
    "SELECT name, size, spot, problem FROM member WHERE family = ? AND NOT is_image"
    f" ORDER BY number LIMIT {MAX_SIDECARS + 1}"
)


class Zip:
    """The images in a zip. The cursor is the number of images listed.

    Unlike in a tar, the members of a group may be anywhere in the archive: the whole group is
    listed at its first member.

    Args:
        location: the archive's location.
        uri: the archive's URI.
    """

    def __init__(self, file: BinaryIO, location: str, uri: str, storage: Storage) -> None:
        self._file, self._location, self._uri, self._storage = file, location, uri, storage
        self._limits = storage.settings.limits

    def stream(self, after: str) -> Iterator[Listed]:
        skip = int(after or 0)
        with scratch() as db:
            self._read_into(db)
            family, sidecars = None, sidecar_data([], self._limits)
            (has_sidecars,) = db.execute(ANY_SIDECAR).fetchone()
            for number, (first, name, *row) in enumerate(db.execute(IMAGES, [skip]), skip + 1):
                if has_sidecars and first != family:
                    family, sidecars = first, self._sidecars_of(db, name)
                image = self._member(*row)
                yield Listed(item_of(self._uri, image, sidecars, self._limits), str(number))

    def count(self) -> int:
        """Estimate the images from the number of members and the share of images in a sample."""
        directory = Directory.of(self._file)
        sample = list(islice(directory.members(self._file), SAMPLE))
        images = sum(_counts(info) and _is_image(info.filename) for info in sample)
        if len(sample) < SAMPLE:
            return images
        return images * max(directory.entries, SAMPLE) // SAMPLE

    def _read_into(self, db: sqlite3.Connection) -> None:
        directory = Directory.of(self._file)
        for statement in TABLES:
            db.execute(statement)
        db.execute("BEGIN")
        rows = (_row(info) for info in directory.members(self._file) if _counts(info))
        db.executemany(
            "INSERT INTO member (family, is_image, name, size, spot, problem)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )
        db.execute("COMMIT")

    def _sidecars_of(self, db: sqlite3.Connection, family: str) -> SidecarData:
        rows = db.execute(SIDECARS, [family]).fetchall()
        if len(rows) > MAX_SIDECARS:
            return SidecarData(
                problem=f"it has more than {MAX_SIDECARS} files of captions and metadata"
            )
        return sidecar_data([self._member(*row) for row in rows], self._limits)

    def _member(self, name: str, size: int, spot: str, problem: str | None) -> Member:
        where = f"{spot}:{self._location}"

        def data(limit: int) -> bytes:
            if problem:
                raise Unreadable(f"{name!r}: {problem}")
            return unzipped(self._storage, where, limit)

        return Member(name, size, lambda: f"zip:{where}", data, problem)


def _counts(info: zipfile.ZipInfo) -> bool:
    return not info.is_dir() and counts(info.filename)


def _is_image(name: str) -> bool:
    return Member(name, 0, str, lambda _: b"").is_image


def _row(info: zipfile.ZipInfo) -> tuple[str, bool, str, int, str, str | None]:
    name = printable(info.filename)
    member = Member(name, info.file_size, str, lambda _: b"")
    spot = f"{info.header_offset}:{info.compress_size}:{info.compress_type}:{info.CRC}"
    return member.group, member.is_image, name, info.file_size, spot, _problem(info)


def _problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & ENCRYPTED:
        return "it is encrypted"
    if info.compress_type not in METHODS:
        return "it is packed with another method than deflate"
    if info.header_offset < 0:
        return "the archive is damaged: the member's offset is before the archive's beginning"
    return None
