"""Failures of a job beyond the first ones, which lie in Redis: in parts, in the blob store.

A part is written once, under a name that comes no second time, before its failures are counted.
It counts for nothing until the ledger names it: a worker that ends in between loses nothing.
"""

import io
from collections.abc import Sequence

from pydantic import ValidationError

from clipfleet.common.blobs import BlobGone, Blobs, BlobsUnavailable
from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Failure

MOST_BYTES = 1 << 30


class FailuresLost(Unavailable):
    """The ledger names a part that the blob store does not have."""

    slug = "failures-lost"
    title = "Some failures of a job are gone from the blob store"


class FailureParts:
    """`blobs`: None for programs that neither count nor read failures."""

    def __init__(self, blobs: Blobs | None) -> None:
        self._blobs = blobs

    @property
    def are_possible(self) -> bool:
        return self._blobs is not None

    def write(self, job_id: str, name: str, failures: Sequence[Failure]) -> None:
        lines = "".join(f"{as_json(failure)}\n" for failure in failures)
        self._store().put(_key(job_id, name), io.BytesIO(lines.encode()))

    def read(self, job_id: str, name: str, size: int, some: slice) -> list[Failure]:
        """Some of a part's; FailuresLost unless `size` are there in all."""
        lost = FailuresLost(f"the blob store has lost failures of job {job_id} (part {name})")
        try:
            lines = self._store().get(_key(job_id, name), MOST_BYTES).splitlines()
            if len(lines) != size:
                raise lost
            return [Failure.model_validate_json(line) for line in lines[some]]
        except (BlobGone, ValidationError) as error:
            raise lost from error

    def delete(self, job_id: str) -> None:
        if self._blobs is not None:
            self._blobs.delete_below(_below(job_id))

    def _store(self) -> Blobs:
        if self._blobs is None:
            raise BlobsUnavailable("failures lie in the blob store, which this program has not")
        return self._blobs


def as_json(failure: Failure) -> str:
    return failure.model_dump_json(exclude_defaults=True)


def _below(job_id: str) -> str:
    return f"failures/{job_id}"


def _key(job_id: str, name: str) -> str:
    return f"{_below(job_id)}/{name}"
