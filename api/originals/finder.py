"""Finds the original of an image by what its record says of it: `Record.uri` and the job.

| uri | original |
|---|---|
| `/data/cat.jpg` | a local file |
| `/data/photos.zip#cat.jpg` | a member of a local archive |
| `s3://photos/cat.jpg`, `s3://photos/all.tar#cat.jpg` | an object, a member of one |
| `upload:JOB/3`, `upload:JOB/PART/3` | an uploaded file, kept as long as its job |
| `https://example.org/all.zip#cat.jpg` | a member of a zip, whose copy is kept as long as its job |
| `https://example.org/cat.jpg` | on another server: the client asks there itself |
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from clipfleet.api.originals.archives import Archives
from clipfleet.api.originals.content import (
    BlobContent,
    BucketContent,
    Content,
    open_file,
)
from clipfleet.common.auth.source_access import SourceAccess
from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.errors import Gone, NotFound
from clipfleet.common.http import uris
from clipfleet.common.ledger.uploads import copies_of, uploads_of

UPLOAD = re.compile(r"upload:([A-Za-z0-9_-]{1,64})/((?:[0-9a-f]{1,32}/)?[0-9]{1,9})")
ARCHIVE = re.compile(r"\.(tar|zip|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
MAX_HASHES = 8  # in a path, of which any may be the one before a member's name
NOTE_BYTES = 200  # more than any key has


@dataclass(frozen=True)
class Origin:
    """What is known of an original.

    Attributes:
        uri: as in the record of the image.
        job_id: the job that read the file; "" for a vector that a client wrote.
    """

    uri: str
    job_id: str

    @property
    def web_address(self) -> str:
        """The address of an original on another server; "" for any other one."""
        if uris.scheme(self.uri) not in ("http", "https") or self._web_archive:
            return ""
        return self.uri

    @property
    def upload(self) -> str:
        """The job whose upload the original is; "" for any other one."""
        upload = UPLOAD.fullmatch(self.uri)
        return upload[1] if upload else ""

    @property
    def name(self) -> str:
        """The last part of the uri."""
        is_web = uris.scheme(self.uri) in ("http", "https")
        uri = self.uri.partition("?")[0] if is_web else self.uri
        last = uri.rstrip("/").rpartition("/")[2]
        archive, _, member = last.partition("#")
        return member if member and ARCHIVE.search(archive) else last

    @property
    def _web_archive(self) -> bool:
        archive, hash_, member = self.uri.partition("#")
        return bool(hash_ and member and ARCHIVE.search(archive.partition("?")[0]))


class Originals:
    """Opens originals. All calls block, and belong on a thread."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs, self._archives = blobs, Archives()

    def open(self, origin: Origin, access: SourceAccess) -> Content:
        """Open an original that is not on another server.

        Args:
            origin: where it is.
            access: what the caller may read of folders and buckets.

        Raises:
            NotFound: the record names nothing that can be opened.
            Gone: it was there, and is not any more.
            Forbidden: the service or the caller's key may not read it.
            Unavailable: another try may help.
        """
        uri = origin.uri
        if upload := UPLOAD.fullmatch(uri):
            key = f"{uploads_of(upload[1])}/{upload[2]}"
            return BlobContent(self._blobs, key, "the uploaded file")
        if uris.scheme(uri) in uris.BUCKETS:
            return self._object(uri, access)
        if uris.scheme(uri) in ("http", "https"):
            return self._copied_member(origin)
        if not uri.startswith("/"):
            raise NotFound(
                f"the record of this image names no file that the service has: {uri[:200]!r}"
            )
        return self._file(uri, access)

    def _file(self, path: str, access: SourceAccess) -> Content:
        try:
            return open_file(path, access, f"the file {path[:500]!r}")
        except FileNotFoundError as error:
            missing = Gone(f"the file {path[:500]!r} is not there any more")
            missing.__cause__ = error
        for archive, member in _splits(path):
            shown = f"the archive {archive[:500]!r}"
            reopen = partial(open_file, archive, access, shown)
            try:
                return self._archives.member(reopen, member, shown)
            except FileNotFoundError:
                missing = Gone(f"{shown} is not there any more")
        raise missing

    def _object(self, url: str, access: SourceAccess) -> Content:
        """An object; its key may contain `#`."""
        try:
            return BucketContent(url, access)
        except Gone:
            splits = [split for split in _splits(url) if ARCHIVE.search(split[0])]
            if not splits:
                raise
        archive, member = splits[0]
        shown = f"the archive {archive[:500]!r}"
        return self._archives.member(partial(BucketContent, archive, access), member, shown)

    def _copied_member(self, origin: Origin) -> Content:
        archive, _, member = origin.uri.partition("#")
        shown = f"the copy of the archive {archive[:500]!r}"
        if not origin.job_id:
            raise NotFound(f"this image is in an archive on another server: {archive[:500]}")
        for address in ("", archive):
            with suppress(BlobGone):
                note = f"{copies_of(origin.job_id, address)}/whole"
                key = self._blobs.get(note, NOTE_BYTES).decode()
                reopen = partial(BlobContent, self._blobs, key, shown)
                return self._archives.member(reopen, member, shown)
        raise NotFound(
            f"this image is in an archive on another server, {archive[:500]}, of which no copy "
            "is kept: of a zip it is kept as long as its job, of a tar never"
        )


def _splits(uri: str) -> Iterator[tuple[str, str]]:
    """The uri of an archive and the name of a member, for each `#`."""
    for match in list(re.finditer("#", uri))[:MAX_HASHES]:
        if match.end() < len(uri):
            yield uri[: match.start()], uri[match.end() :]
