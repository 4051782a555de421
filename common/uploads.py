"""Where the files of an upload lie in the blob store: until their job is removed."""

from clipfleet.common.blobs import Blobs
from clipfleet.common.ledger import Job


def uploads_of(job_id: str) -> str:
    return f"uploads/{job_id}"


def forget_uploads(blobs: Blobs, job: Job) -> None:
    if job.new.source.get("type") == "upload":
        blobs.delete_below(uploads_of(job.id))
