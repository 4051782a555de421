"""The bytes of an original, read at random: a file, a blob, an object, or a member of an archive.

All calls block, and belong on a thread. They raise Gone, Forbidden and Unavailable.
"""

import hashlib
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import fsspec

from clipfleet.common.auth.source_access import SourceAccess, SourceRefused
from clipfleet.common.blobs import BlobGone, Blobs, using_blobs
from clipfleet.common.errors import Forbidden, Gone, Unavailable, reason_of
from clipfleet.common.http import uris

SKIPPED_BYTES = 1 << 18  # of a packed file that are unpacked at once, to come to an offset
PACKED_BYTES = 1 << 16  # read at once from a packed member


class Content(Protocol):
    """Bytes that can be read at random.

    Attributes:
        size: the number of bytes.
        tag: changes when the bytes change: 24 hex digits.
        modified: when they were written, unix seconds; 0: unknown.
    """

    size: int
    tag: str
    modified: float

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, or fewer where the bytes end before."""
        ...

    def close(self) -> None:
        """Release what is open. A second call does nothing."""
        ...


def tag_of(*parts: object) -> str:
    """A tag that differs when one of the parts does."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


class FileContent:
    """A regular file.

    Args:
        descriptor: of the open file, which belongs to this object from now on.
        name: the file, for messages.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            self.close()
            raise Gone(f"{name} is not a regular file any more")
        self.size, self.modified = about.st_size, about.st_mtime
        self.tag = tag_of(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise Unavailable(f"{self._name} cannot be read: {reason_of(error)}") from error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def open_file(path: str, access: SourceAccess, name: str) -> FileContent:
    """Open a local file as far as `access` allows it.

    Args:
        path: absolute.
        access: what may be read. Links are resolved, and cannot be swapped meanwhile.
        name: the file, for messages.

    Raises:
        FileNotFoundError: there is none.
        Forbidden: it is outside the roots, or leads there.
        Gone: it is not a file, or cannot be read.
    """
    try:
        descriptor = access.open_file(access.require_path(path))
    except SourceRefused as error:
        raise Forbidden(f"{name} {error.problem}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except (OSError, ValueError) as error:
        raise Gone(f"{name} cannot be read by the gateway: {reason_of(error)}") from error
    return FileContent(descriptor, name)


class BlobContent:
    """A blob. Blobs are never rewritten, so the key is enough for a tag."""

    def __init__(self, blobs: Blobs, key: str, name: str) -> None:
        self._lock = threading.Lock()
        try:
            self._file: BinaryIO = blobs.open(key)
        except BlobGone as error:
            raise Gone(f"{name} is not there any more: it is kept as long as its job") from error
        with using_blobs("read"):
            self.size = self._file.seek(0, os.SEEK_END)
        self.tag, self.modified = tag_of(key, self.size), 0.0

    def read(self, offset: int, size: int) -> bytes:
        with self._lock, using_blobs("read"):
            self._file.seek(offset)
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


class BucketContent:
    """An object in a bucket.

    Args:
        url: its URL.
        access: what may be read.

    Raises:
        Forbidden: the object is outside the buckets.
        Gone: there is none, or it cannot be read.
        Unavailable: the bucket does not answer.
    """

    def __init__(self, url: str, access: SourceAccess) -> None:
        try:
            access.require_bucket(url)
        except (SourceRefused, uris.BadUri) as error:
            raise Forbidden(f"{uris.short(url)} {error.problem}") from error
        self._url, self._key = url, url.partition("://")[2]
        name = uris.scheme(url)
        try:
            self._fs: Any = fsspec.filesystem(name, use_listings_cache=False)
        except ImportError as error:
            package, extra = uris.BUCKETS[name]
            raise Gone(
                f"{name}:// needs the package {package} on the gateway: "
                f"pip install 'clipfleet[{extra}]'"
            ) from error
        with self._translated():
            about = self._fs.info(self._key)
        if about.get("type", "file") != "file":
            raise Gone(f"{uris.short(url)} is not an object any more")
        self.size = int(about["size"])
        written = about.get("LastModified") or about.get("mtime") or about.get("last_modified")
        self.modified = written.timestamp() if hasattr(written, "timestamp") else 0.0
        etag = about.get("ETag") or about.get("etag")
        self.tag = tag_of(url, self.size, etag or str(written))

    def read(self, offset: int, size: int) -> bytes:
        if offset >= self.size or size <= 0:  # a store refuses such a range
            return b""
        with self._translated():
            end = min(self.size, offset + size)
            data: bytes = self._fs.cat_file(self._key, start=offset, end=end)
        return data

    def close(self) -> None:
        """Nothing is open."""

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate the errors of file systems of fsspec; their texts may contain keys."""
        short = uris.short(self._url)
        try:
            yield
        except FileNotFoundError as error:
            raise Gone(f"the object {short} is not there any more") from error
        except PermissionError as error:
            raise Gone(f"the bucket denies the gateway access to {short}") from error
        except Exception as error:
            kind = type(error).__name__
            raise Unavailable(f"the bucket of {short} cannot be read: {kind}") from error


class Window:
    """A part of other content, such as a member of a tar."""

    def __init__(self, whole: Content, offset: int, size: int) -> None:
        self._whole, self._offset, self.size = whole, offset, size
        self.tag, self.modified = tag_of(whole.tag, offset, size), whole.modified

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        return self._whole.read(self._offset + offset, size)

    def close(self) -> None:
        self._whole.close()


class Inflated:
    """A deflated member of a zip, which is unpacked piece by piece.

    To read before the place where the last call ended, it begins anew.

    Args:
        whole: the zip.
        offset: of the packed bytes.
        packed: their number.
        size: the number of unpacked bytes.
    """

    def __init__(self, whole: Content, offset: int, packed: int, size: int) -> None:
        self._whole, self._begin, self._packed, self.size = whole, offset, packed, size
        self.tag, self.modified = tag_of(whole.tag, offset, size), whole.modified
        self._lock = threading.Lock()
        self._restart()

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            if offset < self._at:
                self._restart()
            while self._at < offset:
                if not self._inflate(min(SKIPPED_BYTES, offset - self._at)):
                    return b""
            pieces, missing = [], max(0, min(size, self.size - offset))
            while missing and (piece := self._inflate(missing)):
                pieces.append(piece)
                missing -= len(piece)
            return b"".join(pieces)

    def close(self) -> None:
        self._whole.close()

    def _restart(self) -> None:
        self._inflater, self._at, self._read, self._rest = zlib.decompressobj(-15), 0, 0, b""

    def _inflate(self, limit: int) -> bytes:
        """The next bytes, at most `limit`; none at the end."""
        piece = b""
        try:
            while not piece and not self._inflater.eof:
                if not self._rest:
                    size = min(PACKED_BYTES, self._packed - self._read)
                    self._rest = self._whole.read(self._begin + self._read, size) if size else b""
                    self._read += len(self._rest)
                    if not self._rest:
                        break
                piece = self._inflater.decompress(self._rest, limit)
                self._rest = self._inflater.unconsumed_tail
        except zlib.error as error:
            raise Gone("the file is damaged inside its archive") from error
        self._at += len(piece)
        return piece
