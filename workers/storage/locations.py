"""Where bytes lie: local files, the web, buckets, and our own blob store. What of them a job may
read, `common/auth/source_access.py` says, when a place is found and again when it is opened.

A place is written `file:PATH`, `url:URL`, `fs:BUCKET-URL` or `blob:KEY`. Every call raises
Unreadable where trying again would not help, and Unavailable where it would.
"""

import errno
import io
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urljoin

import fsspec

from clipfleet.common.auth.source_access import SourceAccess, SourceRefused, access_of
from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.errors import Unavailable, Unreadable
from clipfleet.common.fetch import FREE, require_memory
from clipfleet.common.http import uris
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.settings import Settings

BUFFER = 1 << 16
_AWAY = ("Connection", "Timeout", "SlowDown", "ServiceUnavailable")


class BucketAway(Unavailable):
    """A bucket does not answer: others may."""


class Fetches(Protocol):
    """As the fetcher of `common/fetch`: Unreadable where a URL cannot be had."""

    def get(self, url: str, limit_bytes: int) -> bytes: ...

    def open(self, url: str) -> AbstractContextManager[BinaryIO]: ...

    def refusal(self, url: str) -> str: ...


class BadPlace(Unreadable):
    """A URI names nothing that may be read.

    Attributes:
        problem: why, without the URI, which may be the text of any file.
    """

    def __init__(self, error: uris.BadUri | SourceRefused) -> None:
        super().__init__(str(error))
        self.problem = error.problem


class Storage:
    """Finds and opens what jobs read.

    Args:
        buckets: the schemes that fsspec may be asked for, with package and extra.
        access: what may be read. Left out: what the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        blobs: Blobs,
        fetcher: Fetches,
        buckets: Mapping[str, tuple[str, str]] = uris.BUCKETS,
        access: SourceAccess | None = None,
    ) -> None:
        self.settings, self.blobs = settings, blobs
        self.access = access or access_of(settings, blobs)
        self._fetcher, self._buckets = fetcher, buckets

    def within(self, grant: SourceGrant | None) -> "Storage":
        """The same for a job that was given this grant."""
        access = self.access.within(grant)
        return type(self)(self.settings, self.blobs, self._fetcher, self._buckets, access)

    def find(self, uri: str, base: str = "") -> str:
        """The place that a URI names; a relative one is relative to the place `base`.

        BadPlace for what may not be read. Nothing is opened yet.
        """
        try:
            return self._find(uri, base)
        except (SourceRefused, uris.BadUri) as error:
            raise BadPlace(error) from error

    def _find(self, uri: str, base: str) -> str:
        name = uris.scheme(uri)
        where = "bucket" if name in self._buckets else uris.kind(uri)
        if where == "bucket":
            return f"fs:{self.access.require_bucket(uri)}"
        if where == "web":
            return f"url:{uris.require_web(uri)}"
        path = uris.local_path(uri)
        kind, _, beside = base.partition(":")
        if kind == "url":
            return f"url:{_joined(beside, uri)}" if name != "file" else self._local(path)
        if os.path.isabs(path):
            return self._local(path)
        if kind == "fs":
            return f"fs:{self.access.require_bucket(_beside(beside, path))}"
        return self._local(os.path.join(os.path.dirname(beside), path) if beside else path)

    def _local(self, path: str) -> str:
        return f"file:{self.access.require_path(path)}"

    def open(self, place: str) -> AbstractContextManager[BinaryIO]:
        """From its beginning, buffered. What comes from the web cannot seek."""
        kind, _, where = place.partition(":")
        if kind == "url":
            return self._from_web(where)
        if kind == "fs":
            return _reading(lambda: self._bucket(where).open(_key(where), "rb"), bucket_errors)
        if kind == "blob":
            return _reading(lambda: self.blobs.open(where), _blob_errors)
        if kind == "file":
            return _reading(lambda: _open_file(where, self.access), _file_errors)
        raise Unreadable(f"unknown kind of place {kind!r}")

    def read(self, place: str, limit: int) -> bytes:
        """All of it, or one byte more than the limit."""
        kind, _, where = place.partition(":")
        if kind == "url":
            return self._fetcher.get(where, limit)
        if kind == "fs":
            return self._read_object(place, limit)
        with self.open(place) as file:
            return file.read(limit + 1)

    def _read_object(self, place: str, limit: int) -> bytes:
        """In two parts when it is large: how large, a bucket does not say with the first."""
        head = self.read_part(place, 0, min(FREE, limit + 1))
        if len(head) < FREE:
            return head
        url = place.partition(":")[2]
        with bucket_errors():
            size = min(int(self._bucket(url).info(_key(url))["size"]), limit + 1)
        require_memory(size)
        return head + self.read_part(place, FREE, size - FREE) if size > FREE else head

    def refusal(self, place: str) -> str:
        """Why it cannot be read just now, if that is known without asking; else ""."""
        kind, _, where = place.partition(":")
        return self._fetcher.refusal(where) if kind == "url" else ""

    def read_part(self, place: str, offset: int, size: int) -> bytes:
        """Bytes from the midst; fewer where it ends before."""
        kind, _, where = place.partition(":")
        if kind == "fs":  # an open file would read ahead by megabytes
            require_memory(size)
            with bucket_errors():
                data: bytes = self._bucket(where).cat_file(
                    _key(where), start=offset, end=offset + size
                )
                return data
        with self.open(place) as file:
            file.seek(offset)
            return file.read(size)

    def bucket(self, url: str) -> Any:
        """The fsspec file system of a bucket URL."""
        with bucket_errors():
            return self._bucket(url)

    def _bucket(self, url: str) -> Any:
        """Never by the URL itself, which fsspec may take for a chain of file systems."""
        try:
            self.access.require_bucket(url)
        except (SourceRefused, uris.BadUri) as error:
            raise BadPlace(error) from error
        package, extra = self._buckets[uris.scheme(url)]
        try:
            return fsspec.filesystem(uris.scheme(url), use_listings_cache=False)
        except ImportError as error:
            said = f"{uris.scheme(url)}:// needs the package {package} on every planner and worker"
            raise Unreadable(f"{said}: pip install 'clipfleet[{extra}]'") from error

    @contextmanager
    def _from_web(self, url: str) -> Iterator[BinaryIO]:
        with self._fetcher.open(url) as body:
            yield cast("BinaryIO", io.BufferedReader(_Reading(body, _as_it_is), BUFFER))


Errors = Callable[[], AbstractContextManager[None]]


class _Reading(io.RawIOBase):
    """Another file, whose errors come out as ours."""

    def __init__(self, source: Any, errors: Errors) -> None:
        self._source, self._errors = source, errors

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(getattr(self._source, "seekable", bool)())

    def readinto(self, buffer: Any) -> int:
        with self._errors():
            data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """An OSError where that is before the beginning, as files have it: zipfile tries."""
        try:
            return int(self._source.seek(offset, whence))
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error

    def tell(self) -> int:
        return int(self._source.tell())


@contextmanager
def _reading(opened: Callable[[], Any], errors: Errors) -> Iterator[BinaryIO]:
    with errors():
        source = opened()
    with source:
        yield cast("BinaryIO", io.BufferedReader(_Reading(source, errors), BUFFER))


def _open_file(path: str, access: SourceAccess) -> BinaryIO:
    descriptor = access.open_file(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("it is no regular file")
    return open(descriptor, "rb", buffering=0)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except SourceRefused as error:
        raise Unreadable(f"the file {error.problem}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(f"the file cannot be read: {reason}") from error


@contextmanager
def _blob_errors() -> Iterator[None]:
    try:
        yield
    except BlobGone as error:
        raise Unreadable("the uploaded file is gone") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unavailable(f"the blob store cannot be read: {reason}") from error


@contextmanager
def bucket_errors() -> Iterator[None]:
    """fsspec's file systems raise OSErrors, and what their vendors' libraries raise."""
    try:
        yield
    except (Unreadable, Unavailable):
        raise
    except FileNotFoundError as error:
        raise Unreadable("there is no such bucket or object") from error
    except PermissionError as error:
        raise Unreadable(f"the bucket may not be read: {error}") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:300]
        if isinstance(error, ConnectionError | TimeoutError) or any(w in said for w in _AWAY):
            raise BucketAway(f"the bucket does not answer: {said}") from error
        raise Unreadable(f"the bucket cannot be read: {said}") from error


def _key(url: str) -> str:
    return url.partition("://")[2]


def _beside(url: str, name: str) -> str:
    """An object by its place relative to another of the same bucket."""
    head, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(key), name))
    if joined == ".." or joined.startswith("../"):
        raise uris.BadUri(name, "leads out of the bucket")
    return f"{head}://{bucket}/{joined}"


def _joined(base: str, uri: str) -> str:
    try:
        return uris.require_web(urljoin(base, uri))
    except ValueError as error:  # //[x
        raise uris.BadUri(uri, "is no URL") from error
