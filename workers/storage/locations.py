"""Locations of bytes: local files, URLs, bucket objects, and blobs of the service's own store.

A location is written `file:PATH`, `url:URL`, `fs:BUCKET-URL` or `blob:KEY`.
`common/auth/source_access.py` decides what a job may read: when a URI becomes a location, and again
when the location is opened. Every call raises Unreadable if another try would not help, and
Unavailable if it may help.
"""

import errno
import io
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urljoin

import fsspec

from clipfleet.common.auth.source_access import SourceAccess, SourceRefused, access_of
from clipfleet.common.blobs import BlobGone, Blobs, using_blobs
from clipfleet.common.errors import Unavailable, Unreadable, reason_of
from clipfleet.common.fetch import FREE, require_memory
from clipfleet.common.http import uris
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.settings import Limits, Settings

BUFFER = 1 << 16
_AWAY = ("Connection", "Timeout", "SlowDown", "ServiceUnavailable")


class BucketAway(Unavailable):
    """One bucket does not answer; other buckets may."""


class Fetches(Protocol):
    """The part of `common.fetch.Fetcher` that `Storage` uses. Raises Unreadable and Unavailable."""

    def get(self, url: str, limit_bytes: int) -> bytes:
        """Fetch the whole body at a URL.

        Args:
            url: an http or https URL.
            limit_bytes: the size of the body at most, bytes.

        Raises:
            Unreadable: the body cannot be fetched, or is longer; the text gives the reason.
            Unavailable: another try may help.
        """
        ...

    def open(self, url: str) -> AbstractContextManager[BinaryIO]:
        """Fetch the body at a URL as a stream that cannot seek, of any length.

        Args:
            url: an http or https URL.

        Raises:
            Unreadable: the body cannot be fetched; `read` of the stream raises it as well.
            Unavailable: another try may help.
        """
        ...

    def refusal(self, url: str) -> str:
        """Why a fetch would be refused at once, because the host failed lately.

        Args:
            url: an http or https URL.

        Returns:
            The reason; "" when the host may be asked.
        """
        ...


class BadLocation(Unreadable):
    """A URI names nothing that the job may read.

    Attributes:
        problem: the reason, without the URI, which may be the text of any file.
    """

    def __init__(self, error: uris.BadUri | SourceRefused) -> None:
        super().__init__(str(error))
        self.problem = error.problem


@dataclass(frozen=True)
class _Folder:
    """The last folder in which a file was found. Its other files need no check of their own.

    Attributes:
        of: the base, the folder as the URI names it, and the slash after it.
        location: the location of the folder, with a slash.
        own: names in the folder that no job may read.
    """

    of: tuple[str, str, str] = ("", "", "no slash")
    location: str = ""
    own: frozenset[str] = frozenset()

    def holds(self, name: str) -> bool:
        """Whether a name is that of a file in the folder, which may be read."""
        return name not in ("", ".", "..") and name not in self.own


class Storage:
    """Finds and opens the locations that jobs read.

    Args:
        fetcher: reads URLs.
        buckets: the URI schemes that fsspec may open, with the package and the extra of each.
        access: what may be read; by default, what the settings allow.
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
        self.image_bytes = settings.limits.image_bytes
        self._last_folder = _Folder()

    def within(self, grant: SourceGrant | None) -> "Storage":
        """The same storage, restricted to what this grant of a job allows."""
        access = self.access.within(grant)
        return type(self)(self.settings, self.blobs, self._fetcher, self._buckets, access)

    def find(self, uri: str, base: str = "") -> str:
        """The location that a URI names. Opens nothing.

        Args:
            uri: a URI or a path; a relative one is resolved against `base`.
            base: the location of the manifest that holds the URI.

        Raises:
            BadLocation: the URI is not valid, or the job may not read it.
        """
        folder, slash, name = uri.rpartition("/")
        known = self._last_folder
        if (base, folder, slash) == known.of and known.holds(name):
            return known.location + name
        try:
            location = self._find(uri, base)
            self._last_folder = self._folder_of(location, name, (base, folder, slash))
        except (SourceRefused, uris.BadUri) as error:
            raise BadLocation(error) from error
        return location

    def _folder_of(self, location: str, name: str, of: tuple[str, str, str]) -> "_Folder":
        """What holds for all files of the folder that contains a location."""
        kind, _, path = location.partition(":")
        is_uri = "://" in f"{of[1]}/"
        if kind != "file" or is_uri or path != os.path.join(os.path.dirname(path), name):
            return _Folder()
        try:
            folder = self.access.require_path(os.path.dirname(path))
        except SourceRefused:  # the file itself is a root
            return _Folder()
        return _Folder(of, f"file:{os.path.join(folder, '')}", self.access.own_names(folder))

    def _find(self, uri: str, base: str) -> str:
        name = uris.scheme(uri)
        target = "bucket" if name in self._buckets else uris.kind(uri)
        if target == "bucket":
            return f"fs:{self.access.require_bucket(uri)}"
        if target == "web":
            return f"url:{uris.require_web(uri)}"
        path = uris.local_path(uri)
        kind, _, base_path = base.partition(":")
        if kind == "url":
            return f"url:{_join_url(base_path, uri)}" if name != "file" else self._local(path)
        if os.path.isabs(path):
            return self._local(path)
        if kind == "fs":
            return f"fs:{self.access.require_bucket(_sibling(base_path, path))}"
        return self._local(os.path.join(os.path.dirname(base_path), path) if base_path else path)

    def _local(self, path: str) -> str:
        return f"file:{self.access.require_path(path)}"

    def open(self, location: str) -> AbstractContextManager[BinaryIO]:
        """Open a location for reading, buffered. A body from the web cannot seek."""
        kind, _, where = location.partition(":")
        if kind == "url":
            return self._from_web(where)
        if kind == "fs":
            return _open_translated(
                lambda: self._bucket(where).open(_key(where), "rb"), bucket_errors
            )
        if kind == "blob":
            return _open_translated(lambda: self.blobs.open(where), _blob_errors)
        if kind == "file":
            return _open_translated(lambda: _open_file(where, self.access), _file_errors)
        raise Unreadable(f"unknown kind of location {kind!r}")

    def read(self, location: str, limit: int) -> bytes:
        """Read all bytes, or one byte more than the limit."""
        kind, _, where = location.partition(":")
        if kind == "url":
            return self._fetcher.get(where, limit)
        if kind == "fs":
            return self._read_object(location, limit)
        with self.open(location) as file:
            return file.read(limit + 1)

    def _read_object(self, location: str, limit: int) -> bytes:
        """Read a large object in two parts: the first read does not tell the object's size."""
        head = self.read_part(location, 0, min(FREE, limit + 1))
        if len(head) < FREE:
            return head
        url = location.partition(":")[2]
        with bucket_errors():
            size = min(int(self._bucket(url).info(_key(url))["size"]), limit + 1)
        require_memory(size)
        return head + self.read_part(location, FREE, size - FREE) if size > FREE else head

    def refusal(self, location: str) -> str:
        """The reason why the location cannot be read at present, if it is known without a request.

        "" otherwise.
        """
        kind, _, where = location.partition(":")
        return self._fetcher.refusal(where) if kind == "url" else ""

    def read_part(self, location: str, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, or fewer where the bytes end before."""
        kind, _, where = location.partition(":")
        if kind == "fs":  # an open file would read ahead by megabytes
            require_memory(size)
            with bucket_errors():
                return _range_of(self._bucket(where), _key(where), offset, size)
        with self.open(location) as file:
            file.seek(offset)
            return file.read(size)

    def bucket(self, url: str) -> Any:
        """The fsspec file system of a bucket URL."""
        with bucket_errors():
            return self._bucket(url)

    def _bucket(self, url: str) -> Any:
        """The file system of a scheme; fsspec may take a URL for a chain of file systems."""
        try:
            self.access.require_bucket(url)
        except (SourceRefused, uris.BadUri) as error:
            raise BadLocation(error) from error
        package, extra = self._buckets[uris.scheme(url)]
        try:
            return fsspec.filesystem(uris.scheme(url), use_listings_cache=False)
        except ImportError as error:
            message = (
                f"{uris.scheme(url)}:// needs the package {package} on every planner and worker"
            )
            raise Unreadable(f"{message}: pip install 'clipfleet[{extra}]'") from error

    @contextmanager
    def _from_web(self, url: str) -> Iterator[BinaryIO]:
        with self._fetcher.open(url) as body:
            yield cast("BinaryIO", io.BufferedReader(_TranslatedFile(body, _untranslated), BUFFER))


class LocalFiles:
    """Reads local files, and nothing else: what feeders read.

    Args:
        access: what may be read.
        limits: `image_bytes` is the limit on the size of an image.
    """

    def __init__(self, access: SourceAccess, limits: Limits) -> None:
        self._access, self.image_bytes = access, limits.image_bytes

    def read(self, location: str, limit: int) -> bytes:
        """Read all bytes, or one byte more than the limit."""
        return self.read_part(location, 0, limit + 1)

    def read_part(self, location: str, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, or fewer where the bytes end before."""
        with _file_errors(), _open_file(_path(location), self._access) as file:
            remaining = os.fstat(file.fileno()).st_size - offset
            file.seek(offset)
            return file.read(min(size, remaining + 1) if remaining > 0 else size)


def is_local(location: str) -> bool:
    """Whether `LocalFiles` can read a location."""
    return location.startswith("file:")


def _path(location: str) -> str:
    if not is_local(location):
        raise Unreadable(f"unknown kind of location {location.partition(':')[0]!r}")
    return location.removeprefix("file:")


Errors = Callable[[], AbstractContextManager[None]]


class _TranslatedFile(io.RawIOBase):
    """A file whose errors are translated into Unreadable and Unavailable."""

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
        """Seek; an offset before the beginning raises OSError, which zipfile expects of files."""
        try:
            return int(self._source.seek(offset, whence))
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error

    def tell(self) -> int:
        return int(self._source.tell())


@contextmanager
def _open_translated(opened: Callable[[], Any], errors: Errors) -> Iterator[BinaryIO]:
    with errors():
        source = opened()
    with source:
        yield cast("BinaryIO", io.BufferedReader(_TranslatedFile(source, errors), BUFFER))


def _open_file(path: str, access: SourceAccess) -> BinaryIO:
    descriptor = access.open_file(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("it is not a regular file")
    return open(descriptor, "rb", buffering=0)


@contextmanager
def _untranslated() -> Iterator[None]:
    yield


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except SourceRefused as error:
        raise Unreadable(f"the file {error.problem}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise Unreadable(f"the file cannot be read: {reason_of(error)}") from error


@contextmanager
def _blob_errors() -> Iterator[None]:
    try:
        with using_blobs("read"):
            yield
    except BlobGone as error:
        raise Unreadable("the uploaded file is gone") from error


@contextmanager
def bucket_errors() -> Iterator[None]:
    """Translate the errors of fsspec's file systems: OSErrors and their vendors' own errors."""
    try:
        yield
    except (Unreadable, Unavailable):
        raise
    except FileNotFoundError as error:
        raise Unreadable("there is no such bucket or object") from error
    except PermissionError as error:
        raise Unreadable(f"the bucket denies access: {error}") from error
    except Exception as error:
        message = f"{type(error).__name__}: {error}"[:300]
        if isinstance(error, ConnectionError | TimeoutError) or any(
            word in message for word in _AWAY
        ):
            raise BucketAway(f"the bucket does not answer: {message}") from error
        raise Unreadable(f"the bucket cannot be read: {message}") from error


def _range_of(fs: Any, key: str, offset: int, size: int) -> bytes:
    """Bytes of an object. A store refuses a range that begins at the end of the object or later."""
    try:
        data: bytes = fs.cat_file(key, start=offset, end=offset + size)
    except Exception:
        if size and int(fs.info(key)["size"]) <= offset:
            return b""
        raise
    return data


def _key(url: str) -> str:
    return url.partition("://")[2]


def _sibling(url: str, name: str) -> str:
    """The URL of an object by its path relative to another object of the same bucket."""
    head, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(key), name))
    if joined == ".." or joined.startswith("../"):
        raise uris.BadUri(name, "leads out of the bucket")
    return f"{head}://{bucket}/{joined}"


def _join_url(base: str, uri: str) -> str:
    try:
        return uris.require_web(urljoin(base, uri))
    except ValueError as error:  # //[x
        raise uris.BadUri(uri, "is not a URL") from error
