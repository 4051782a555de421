"""Where a job's own files lie in the blob store, uploads or copies: until the job is removed."""

from clipfleet.common.ledger import NewJob


def uploads_of(job_id: str) -> str:
    return f"uploads/{job_id}"


def has_uploads(new: NewJob) -> bool:
    """Whether there may be some: what came from the web or was packed is copied to be read. A
    retry has none of its own."""
    return new.source.get("type") in ("upload", "archive", "manifest") and not new.retry_of
