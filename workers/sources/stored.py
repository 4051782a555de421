"""Finds where the bytes of a stored image are, by what its record says of it.

`api/originals/finder.py` has the forms of a record's uri.
"""

import os
import re
import sqlite3
from collections.abc import Iterator

from clipfleet.common.http import uris
from clipfleet.common.http.sources import ArchiveSource
from clipfleet.common.ledger.uploads import uploads_of
from clipfleet.common.store import Record
from clipfleet.workers.sources.archive import Archive
from clipfleet.workers.sources.base import SourceError
from clipfleet.workers.sources.copies import Copies
from clipfleet.workers.storage.locations import BadLocation, Storage

UPLOAD = re.compile(r"upload:([A-Za-z0-9_-]{1,64})/((?:[0-9a-f]{1,32}/)?[0-9]{1,9})")
ARCHIVE = re.compile(r"\.(tar|zip|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
MAX_HASHES = 8  # in a uri, of which any may be the one before a member's name
OWN_VECTOR = "a client wrote its embedding, and the service knows no image of it"
TABLES = (
    "CREATE TABLE archive (uri TEXT PRIMARY KEY, problem TEXT)",
    "CREATE TABLE member (uri TEXT PRIMARY KEY, read TEXT, problem TEXT)",
)


class NotFoundAgain(Exception):
    """An image cannot be read any more; the text is the reason."""


class Whereabouts:
    """Finds where stored images can be read again.

    The members of an archive are listed once, into a temporary file.

    Args:
        storage: finds locations, as far as the job may read them.
        job_id: the job, which owns copies of what cannot be read in place.
        scratch: an empty database.
    """

    def __init__(self, storage: Storage, job_id: str, scratch: sqlite3.Connection) -> None:
        self._storage, self._job_id, self._members = storage, job_id, scratch
        for table in TABLES:
            scratch.execute(table)

    def read_of(self, record: Record) -> str:
        """Where the bytes of an image are, as `Item.read`.

        Raises:
            NotFoundAgain: they cannot be read any more.
            Unavailable: another try may help.
        """
        uri = record.uri
        if not record.job_id:
            raise NotFoundAgain(OWN_VECTOR)
        if upload := UPLOAD.fullmatch(uri):
            return f"blob:{uploads_of(upload[1])}/{upload[2]}"
        for archive in _archives(uri):
            if self._is_archive(archive, uri):
                return self._member(archive, uri)
        try:
            return self._storage.find(uri)
        except BadLocation as error:
            raise NotFoundAgain(f"the image {error.problem}") from error

    def _is_archive(self, archive: str, uri: str) -> bool:
        """Whether a uri names a member of an archive, and not a file with a `#` in its name."""
        if uris.scheme(uri):
            return bool(ARCHIVE.search(archive.partition("?")[0]))
        return not os.path.exists(uri) and (
            bool(ARCHIVE.search(archive)) or os.path.isfile(archive)
        )

    def _member(self, archive: str, uri: str) -> str:
        known = self._members.execute("SELECT problem FROM archive WHERE uri = ?", [archive])
        row = known.fetchone()
        problem = row[0] if row else self._list(archive)
        member = self._members.execute("SELECT read, problem FROM member WHERE uri = ?", [uri])
        location = member.fetchone()
        if location is None:
            raise NotFoundAgain(problem or "it is not in the archive any more")
        if location[1]:
            raise NotFoundAgain(location[1])
        return str(location[0])

    def _list(self, archive: str) -> str:
        """List the members of an archive. Returns why it cannot be read to its end; "" if it can.

        Raises:
            Unavailable: another try may help.
        """
        copies = Copies(self._storage, self._job_id, archive)
        listed = Archive(ArchiveSource(uri=archive), self._storage, copies, {}).stream("")
        rows = ((entry.item.uri, entry.item.read, entry.item.problem or "") for entry in listed)
        problem = ""
        try:
            self._members.executemany("INSERT OR REPLACE INTO member VALUES (?, ?, ?)", rows)
        except SourceError as error:
            problem = str(error)
        self._members.execute("INSERT OR REPLACE INTO archive VALUES (?, ?)", [archive, problem])
        return problem


def _archives(uri: str) -> Iterator[str]:
    """What may be the uri of an archive, for each `#` with the name of a member behind it."""
    for match in list(re.finditer("#", uri))[:MAX_HASHES]:
        if match.start() > 0 and match.end() < len(uri):
            yield uri[: match.start()]
