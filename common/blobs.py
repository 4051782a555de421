"""Uploaded bytes, in a folder or a bucket. The gateway writes, workers read."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import fsspec
from fsspec.spec import AbstractBufferedFile

from clipfleet.common.errors import Unavailable

BLOCK_BYTES = 5 << 20  # held of a blob that is written to a bucket: S3's smallest part


class BlobsUnavailable(Unavailable):
    """The blob store is away or full."""


class BlobGone(Exception):
    """No such blob."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise BlobsUnavailable(f"the blob store cannot be written: {reason}") from error


class BlobWriter:
    """A blob that is being written. Errors are those of `Blobs`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        with _writing():
            self._file.write(data)

    def close(self) -> None:
        """The blob is complete."""
        with _writing():
            self._file.close()

    def discard(self) -> None:
        """End it without what was not written yet. The blob, or a part of it, may be there."""
        with _writing():
            if isinstance(self._file, AbstractBufferedFile):  # of a bucket: `close` would finish it
                self._file.discard()
                self._file.closed = True
            else:
                self._file.close()


class Blobs:
    """`url` as fsspec writes it: a folder, `s3://bucket/prefix`, `memory://x`."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(url)

    @property
    def folder(self) -> str:
        """Where they lie on this machine; empty when they lie elsewhere."""
        return str(self._root) if "file" in self._protocols else ""

    @property
    def url(self) -> str:
        """Where they lie in a bucket, as `s3://bucket/prefix`; empty when they lie in a folder."""
        path = str(self._root).strip("/")
        return "" if self.folder else f"{self._protocols[0]}://{path}"

    @property
    def _protocols(self) -> tuple[str, ...]:
        fs = self._fs
        while hasattr(fs, "fs"):  # one that caches another
            fs = fs.fs
        return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)

    def put(self, key: str, source: BinaryIO) -> None:
        """Copy a stream. Who refers to the key does so after this has returned."""
        path = self._path(key)
        with _writing():
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._fs.open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)

    def create(self, key: str) -> "BlobWriter":
        """A new blob, to be written piece by piece. Who refers to it does so after `close`."""
        path = self._path(key)
        with _writing():
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            return BlobWriter(self._fs.open(path, "wb", block_size=BLOCK_BYTES))

    def get(self, key: str, limit_bytes: int) -> bytes:
        """At most `limit_bytes` + 1 bytes, enough to see that there are too many."""
        try:
            with self._fs.open(self._path(key), "rb") as source:
                data: bytes = source.read(limit_bytes + 1)
                return data
        except FileNotFoundError as error:
            raise BlobGone(key) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise BlobsUnavailable(f"the blob store cannot be read: {reason}") from error

    def open(self, key: str) -> BinaryIO:
        """To be read at any place. OSErrors come out as they are."""
        try:
            found: BinaryIO = self._fs.open(self._path(key), "rb")
            return found
        except FileNotFoundError as error:
            raise BlobGone(key) from error

    def delete(self, key: str) -> None:
        """Deleting what is not there is no error."""
        with _writing(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def delete_below(self, prefix: str) -> None:
        path = self._path(prefix)
        with _writing(), suppress(FileNotFoundError):
            self._fs.invalidate_cache()  # buckets: what was seen before may be there no more
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"
