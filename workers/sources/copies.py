"""Copies in the blob store of sources that cannot be read at random, below the job's own prefix."""

import io
import secrets
from contextlib import suppress
from typing import BinaryIO, cast

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.ledger.uploads import copies_of
from clipfleet.workers.storage.locations import Storage

KEY_BYTES = 200  # more than any key has


class Copies:
    """The copies that a job has in the blob store; they are deleted with the job.

    Args:
        address: which of several sources of the job the copies are of; "": of its only one.
    """

    def __init__(self, storage: Storage, job_id: str, address: str = "") -> None:
        self._storage, self._prefix = storage, copies_of(job_id, address)

    def keep(self, name: str, data: bytes) -> str:
        """Store a copy and return its location; a copy of the same name is replaced."""
        key = f"{self._prefix}/{name}"
        self._blobs.put(key, io.BytesIO(data))
        return f"blob:{key}"

    def ensure_local(self, location: str) -> str:
        """The location, or the location of a copy if it is a URL. A job copies its source once.

        The note that names the copy is written once the copy is complete, so a planner that dies
        while it copies, or two planners at once, do no harm.

        Raises:
            Unreadable: the source cannot be read, or exceeds the limit for copies.
            Unavailable: another try may help.
        """
        if not location.startswith("url:"):
            return location
        note = f"{self._prefix}/whole"
        with suppress(BlobGone):
            return f"blob:{self._blobs.get(note, KEY_BYTES).decode()}"
        key = f"{self._prefix}/source-{secrets.token_hex(4)}"
        limit = self._storage.settings.limits.copied_bytes
        with self._storage.open(location) as source:
            self._blobs.put(key, cast("BinaryIO", _Bounded(source, limit)))
        self._blobs.put(note, io.BytesIO(key.encode()))
        return f"blob:{key}"

    @property
    def _blobs(self) -> Blobs:
        return self._storage.blobs


class _Bounded:
    def __init__(self, source: BinaryIO, limit: int) -> None:
        self._source, self._remaining, self._limit = source, limit, limit

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._remaining -= len(data)
        if self._remaining < 0:
            raise Unreadable(f"it has more than {self._limit} bytes, the limit for copies")
        return data
