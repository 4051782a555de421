"""Failures of a job in the blob store, in parts. The first failures of a job are in Redis.

A part is written once, under a name that is used once, before its failures are counted. It has no
effect until the ledger names it: a worker that ends in between loses nothing.
"""

import io
from collections.abc import Sequence

from pydantic import ValidationError

from clipfleet.common.blobs import BlobGone, Blobs, BlobsUnavailable
from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Failure

MAX_PART_BYTES = 1 << 30


class FailuresLost(Unavailable):
    """The ledger names a part that the blob store does not have, or has damaged."""

    slug = "failures-lost"
    title = "The blob store has lost failures of a job"


class FailureParts:
    """The parts of all jobs.

    Args:
        blobs: the blob store; None for programs that neither count nor read failures.
    """

    def __init__(self, blobs: Blobs | None) -> None:
        self._blobs = blobs

    @property
    def are_possible(self) -> bool:
        """Whether this program has a blob store."""
        return self._blobs is not None

    def write(self, job_id: str, name: str, failures: Sequence[Failure]) -> None:
        """Write a part. BlobsUnavailable when the blob store is away or full."""
        lines = "".join(f"{as_json(failure)}\n" for failure in failures)
        self._store().put(_key(job_id, name), io.BytesIO(lines.encode()))

    def read(self, job_id: str, name: str, size: int, some: slice) -> list[Failure]:
        """Read failures of a part.

        Args:
            size: the number of failures in the part.
            some: which of them to return.

        Raises:
            FailuresLost: the part does not exist, or does not have `size` failures.
            BlobsUnavailable: the blob store is away.
        """
        lost = FailuresLost(f"the blob store has lost failures of job {job_id} (part {name})")
        try:
            lines = self._store().get(_key(job_id, name), MAX_PART_BYTES).splitlines()
            if len(lines) != size:
                raise lost
            return [Failure.model_validate_json(line) for line in lines[some]]
        except (BlobGone, ValidationError) as error:
            raise lost from error

    def delete(self, job_id: str) -> None:
        """Delete all parts of a job."""
        if self._blobs is not None:
            self._blobs.delete_below(_below(job_id))

    def _store(self) -> Blobs:
        if self._blobs is None:
            raise BlobsUnavailable("failures are in the blob store, which this program has not")
        return self._blobs


def as_json(failure: Failure) -> str:
    """The failure as one line of JSON, without default values."""
    return failure.model_dump_json(exclude_defaults=True)


def _below(job_id: str) -> str:
    return f"failures/{job_id}"


def _key(job_id: str, name: str) -> str:
    return f"{_below(job_id)}/{name}"
