"""What cannot be read at random where it lies is copied into the blob store, below the job's own
prefix, as uploads are."""

import io
import secrets
from contextlib import suppress
from typing import BinaryIO, cast

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.errors import Unreadable
from clipfleet.common.ledger.uploads import uploads_of
from clipfleet.workers.storage.locations import Storage

KEY_BYTES = 200


class Copies:
    def __init__(self, places: Storage, job_id: str) -> None:
        self._places, self._prefix = places, uploads_of(job_id)

    def keep(self, name: str, data: bytes) -> str:
        """The place of a copy; the same name again replaces it."""
        key = f"{self._prefix}/{name}"
        self._blobs.put(key, io.BytesIO(data))
        return f"blob:{key}"

    def ensure_local(self, place: str) -> str:
        """The place, or that of a copy when it comes from the web. Copied once per job.

        The note that names the copy is written when it is whole: a planner that dies halfway, or
        two at once, do no harm.
        """
        if not place.startswith("url:"):
            return place
        note = f"{self._prefix}/whole"
        with suppress(BlobGone):
            return f"blob:{self._blobs.get(note, KEY_BYTES).decode()}"
        key = f"{self._prefix}/source-{secrets.token_hex(4)}"
        most = self._places.settings.limits.copied_bytes
        with self._places.open(place) as source:
            self._blobs.put(key, cast("BinaryIO", _Bounded(source, most)))
        self._blobs.put(note, io.BytesIO(key.encode()))
        return f"blob:{key}"

    @property
    def _blobs(self) -> Blobs:
        return self._places.blobs


class _Bounded:
    def __init__(self, source: BinaryIO, most: int) -> None:
        self._source, self._left, self._most = source, most, most

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise Unreadable(f"it has more than {self._most} bytes, the limit for copies")
        return data
