"""Where the files of an upload lie in the blob store: until their job is removed."""

from clipfleet.common.ledger import NewJob


def uploads_of(job_id: str) -> str:
    return f"uploads/{job_id}"


def has_uploads(new: NewJob) -> bool:
    """A retry of an upload has none of its own."""
    return new.source.get("type") == "upload"
