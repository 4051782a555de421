"""Uploaded bytes, in a folder or a bucket. The gateway writes, workers read."""

import shutil
from collections.abc import Sequence
from typing import Any, BinaryIO

import fsspec

from clipfleet.common.errors import Unavailable


class BlobsUnavailable(Unavailable):
    """The blob store is away or full."""


class BlobGone(Exception):
    """No such blob."""


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
        try:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._fs.open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except OSError as error:
            reason = error.strerror or str(error)
            raise BlobsUnavailable(f"the blob store cannot be written: {reason}") from error

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
        try:
            self._fs.rm_file(self._path(key))
        except FileNotFoundError:
            pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise BlobsUnavailable(f"the blob store cannot be written: {reason}") from error

    def delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def delete_below(self, prefix: str) -> None:
        path = self._path(prefix)
        try:
            self._fs.invalidate_cache()  # buckets: what was seen before may be there no more
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise BlobsUnavailable(f"the blob store cannot be written: {reason}") from error

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"
