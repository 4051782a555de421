"""Where the blob store keeps the files of a job, uploads or copies, until the job is removed."""

import hashlib

from clipfleet.common.ledger import NewJob


def uploads_of(job_id: str) -> str:
    """The prefix of the keys of a job's files."""
    return f"uploads/{job_id}"


def has_uploads(new: NewJob) -> bool:
    """Whether a job may have files in the blob store.

    Manifests and archives are copied there to be read, also when images of archives are read again
    for a migration. A job over stored images keeps long parameters there. A retry uses the files of
    the first job.
    """
    kinds = ("upload", "archive", "manifest", "list", "migration", "stored-images")
    return new.source.get("type") in kinds and not new.retry_of


def copies_of(job_id: str, address: str = "") -> str:
    """The prefix of the keys of the copies that a job has of a source.

    Args:
        job_id: the job.
        address: which of several sources of the job it is; "": the only one.
    """
    digest = hashlib.blake2b(address.encode(errors="surrogateescape"), digest_size=8)
    return uploads_of(job_id) + (f"/{digest.hexdigest()}" if address else "")


def parts_of(upload_id: str) -> str:
    """The key of the blob that lists the parts of an upload in several requests."""
    return f"{uploads_of(upload_id)}/parts.json"


def part_of(upload_id: str, part: str) -> str:
    """The key of the blob with the items of one part."""
    return f"{uploads_of(upload_id)}/{part}/items.json"
