"""Zip archives, listed from the directory at their end, which has the offset of every member."""

import posixpath
import sqlite3
import zipfile
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from clipfleet.common.archives.zip_directory import Directory
from clipfleet.common.errors import Unreadable
from clipfleet.common.identity import printable
from clipfleet.workers.sources.base import Listed
from clipfleet.workers.sources.samples import (
    SEVERAL,
    ArchivePlace,
    Member,
    SidecarData,
    best_of,
    ending,
    is_hidden,
    is_part_of_sample,
    item_of,
    owners_of,
    sidecar_data,
    stems_for,
)
from clipfleet.workers.sources.scratch import scratch
from clipfleet.workers.sources.values import Values
from clipfleet.workers.storage.items import unzipped
from clipfleet.workers.storage.locations import Storage

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # flag bit
SAMPLE = 10_000  # members from which the number of images is estimated
MAX_SIDECARS = 1_000  # of one image that are looked at

TABLES = (
    "CREATE TABLE member (number INTEGER PRIMARY KEY, family TEXT, stem TEXT, is_image INTEGER,"
    " name TEXT, size INTEGER, spot TEXT, problem TEXT)",
)
INDEX = "CREATE INDEX stems ON member (stem, is_image)"
IMAGES = (
    "SELECT name, size, spot, problem"
    " FROM (SELECT *, min(number) OVER (PARTITION BY family) AS first FROM member)"
    " WHERE is_image ORDER BY first, number LIMIT -1 OFFSET ?"
)
ANY_SIDECAR = "SELECT EXISTS (SELECT 1 FROM member WHERE NOT is_image)"
SIDECARS = (
    "SELECT name, size, spot, problem FROM member WHERE stem IN (%s) AND is_image = 0"
    f" LIMIT {MAX_SIDECARS}"
)
WITH_WORDS = (
    "SELECT name, size, spot, problem FROM member WHERE stem > ? AND stem < ? AND is_image = 0"
    f" ORDER BY stem LIMIT {MAX_SIDECARS}"
)
IS_IMAGE = "SELECT EXISTS (SELECT 1 FROM member WHERE stem = ? AND is_image = 1)"
IS_IMAGE_NAME = "SELECT EXISTS (SELECT 1 FROM member WHERE stem = ? AND is_image = 1 AND name = ?)"
IS_BELOW = "SELECT EXISTS (SELECT 1 FROM member WHERE stem > ? AND stem < ? AND is_image = 1)"
LONELY = (
    "SELECT name FROM member AS sidecar WHERE is_image = 0 AND NOT EXISTS"
    " (SELECT 1 FROM member WHERE stem = sidecar.stem AND is_image = 1)"
)


class Zip:
    """The images in a zip. The cursor is the number of images listed.

    Unlike in a tar, the members of a group may be anywhere in the archive: the whole group is
    listed at its first member.

    Args:
        location: the archive's location.
        place: the archive, as its images are named.
        values: reads the sidecars, and counts what is left out.
    """

    def __init__(
        self, file: BinaryIO, location: str, place: ArchivePlace, storage: Storage, values: Values
    ) -> None:
        self._values = values
        self._has_lonely = False  # whether a sidecar has another name than any image
        self._last = ("", list[Member]())  # a stem, and the sidecars with further words for it
        self._file, self._location, self._place, self._storage = file, location, place, storage
        self._limits = storage.settings.limits

    def stream(self, after: str) -> Iterator[Listed]:
        skip = int(after or 0)
        with scratch() as db:
            self._read_into(db, is_counted=not after)
            (has_sidecars,) = db.execute(ANY_SIDECAR).fetchone()
            if has_sidecars:
                db.execute(INDEX)
                self._has_lonely = db.execute(LONELY).fetchone() is not None
            if has_sidecars and not after:
                self._count_lonely(db)
            names, data = list[str](), SidecarData()
            for number, row in enumerate(db.execute(IMAGES, [skip]), skip + 1):
                image = self._member(*row)
                if has_sidecars:
                    sidecars = self._sidecars_of(db, image)
                    if names != [sidecar.name for sidecar in sidecars]:
                        names = [sidecar.name for sidecar in sidecars]
                        data = sidecar_data(sidecars, self._limits, self._values)
                yield Listed(item_of(self._place, image, data, self._limits), str(number))

    def count(self) -> int:
        """Estimate the images from the number of members and the share of images in a sample."""
        directory = Directory.of(self._file)
        sample = list(islice(directory.members(self._file), SAMPLE))
        images = sum(_is_listed(info) and _is_image(info.filename) for info in sample)
        if len(sample) < SAMPLE:
            return images
        return images * max(directory.entries, SAMPLE) // SAMPLE

    def _read_into(self, db: sqlite3.Connection, *, is_counted: bool) -> None:
        """Read the directory.

        Args:
            is_counted: whether to count the members that are left out.
        """
        directory = Directory.of(self._file)
        for statement in TABLES:
            db.execute(statement)
        db.execute("BEGIN")
        rows = (_row(info) for info in self._listed(directory, is_counted))
        db.executemany(
            "INSERT INTO member (family, stem, is_image, name, size, spot, problem)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        db.execute("COMMIT")

    def _listed(self, directory: Directory, is_counted: bool) -> Iterator[zipfile.ZipInfo]:
        for info in directory.members(self._file):
            if _is_listed(info):
                yield info
            elif is_counted and not info.is_dir() and not is_hidden(info.filename):
                self._values.notes.leave_out(ending(info.filename.rpartition("/")[2]))

    def _sidecars_of(self, db: sqlite3.Connection, image: Member) -> list[Member]:
        stems = stems_for(image) if self._has_lonely else stems_for(image)[1:]
        rows = db.execute(SIDECARS % ", ".join("?" * len(stems)), stems).fetchall()
        candidates = [self._member(*row) for row in rows]
        if self._has_lonely and image.stem != self._last[0]:
            self._last = (image.stem, self._with_words(db, image.stem))
        candidates += self._last[1]
        chosen, several = best_of(image, candidates)
        if several:
            self._values.notes.remark(SEVERAL)
        return chosen

    def _with_words(self, db: sqlite3.Connection, stem: str) -> list[Member]:
        """The sidecars with further words that the images with this stem can have."""
        rows = db.execute(WITH_WORDS, _below(stem)).fetchall()
        below = [self._member(*row) for row in rows]
        return [sidecar for sidecar in below if self._owner(db, sidecar) == stem]

    def _owner(self, db: sqlite3.Connection, sidecar: Member) -> str | None:
        """The stem of the images that have this sidecar with further words, if there is one."""
        if self._is_exact(db, sidecar):
            return None
        owners = owners_of(sidecar.stem)
        return next((stem for stem in owners if db.execute(IS_IMAGE, [stem]).fetchone()[0]), None)

    def _is_exact(self, db: sqlite3.Connection, sidecar: Member) -> bool:
        """Whether the sidecar has the name of an image, with or without the image's ending."""
        of_name = posixpath.splitext(sidecar.stem)[0]
        return bool(
            db.execute(IS_IMAGE, [sidecar.stem]).fetchone()[0]
            or db.execute(IS_IMAGE_NAME, [of_name, sidecar.stem]).fetchone()[0]
        )

    def _count_lonely(self, db: sqlite3.Connection) -> None:
        """Count the sidecars of no image as left out."""
        for (name,) in db.execute(LONELY):
            sidecar = Member(name, 0, str, lambda _: b"")
            has_image = self._is_exact(db, sidecar) or self._owner(db, sidecar) is not None
            if not has_image and not db.execute(IS_BELOW, _below(sidecar.stem)).fetchone()[0]:
                self._values.notes.leave_out(sidecar.suffix)

    def _member(self, name: str, size: int, spot: str, problem: str | None) -> Member:
        where = f"{spot}:{self._location}"

        def data(limit: int) -> bytes:
            if problem:
                raise Unreadable(f"{name!r}: {problem}")
            return unzipped(self._storage, where, limit)

        return Member(name, size, lambda: f"zip:{where}", data, problem)


def _below(stem: str) -> tuple[str, str]:
    """The range of the stems that begin with this one and a dot."""
    return f"{stem}.", f"{stem}/"  # the character after the dot is the slash


def _is_listed(info: zipfile.ZipInfo) -> bool:
    name = info.filename
    return not info.is_dir() and is_part_of_sample(name) and not is_hidden(name)


def _is_image(name: str) -> bool:
    return Member(name, 0, str, lambda _: b"").is_image


def _row(info: zipfile.ZipInfo) -> tuple[str, str, bool, str, int, str, str | None]:
    name = printable(info.filename)
    member = Member(name, info.file_size, str, lambda _: b"")
    spot = f"{info.header_offset}:{info.compress_size}:{info.compress_type}:{info.CRC}"
    is_image, problem = member.is_image, _problem(info)
    return member.group, member.stem, is_image, name, info.file_size, spot, problem


def _problem(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & ENCRYPTED:
        return "it is encrypted"
    if info.compress_type not in METHODS:
        return "it is packed with another method than deflate"
    if info.header_offset < 0:
        return "the archive is damaged: the member's offset is before the archive's beginning"
    return None
