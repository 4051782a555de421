"""Jobs as the HTTP interface and webhooks show them."""

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from clipfleet.common.http.mirror import MirrorOut
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.ledger import FINAL, Job
from clipfleet.common.ledger.notes import CHANGED, NEW, left_out, remarks

SHOWN_CHARS = 1_000  # of a source


def job_out(job: Job) -> JobOut:
    """Return a job as the HTTP interface shows it, with its rate and its remaining time."""
    finished = job.done + job.failed + job.skipped
    total = job.total if job.planned else max(job.total, job.estimated)
    end = job.finished_at or time.time()
    elapsed = end - job.started_at if job.started_at else 0.0
    rate = finished / elapsed if finished and elapsed > 0 else None
    eta_s = (total - finished) / rate if rate and job.state not in FINAL else None
    return JobOut(
        id=job.id,
        collection=job.new.collection,
        namespace=job.new.namespace,
        source=shown_source(job.new.source),
        task=job.new.source.get("task"),
        state=job.state,
        total=total,
        done=job.done,
        failed=job.failed,
        skipped=job.skipped,
        replaced=job.replaced,
        updated=job.updated,
        left_out=left_out(job.notes),
        mirror=_mirror_out(job),
        remarks=remarks(job.notes),
        rate=rate,
        eta_s=eta_s,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error=job.error or None,
        waiting=job.waiting or None,
        retry_of=job.new.retry_of or None,
        retried_by=job.retried_by or None,
        webhook=_shown_webhook(job),
    )


def _mirror_out(job: Job) -> MirrorOut | None:
    """How far a mirror is; None for other jobs."""
    mirror, result = job.new.mirror, job.mirror
    if mirror is None:
        return None
    return MirrorOut(
        missing=mirror.missing,
        max_delete=mirror.max_delete,
        dry_run=mirror.dry_run,
        gone=result.gone if result else None,
        deleted=result.deleted if result else 0,
        new=job.notes.get(NEW, 0) if mirror.dry_run else None,
        changed=job.notes.get(CHANGED, 0) if mirror.dry_run else None,
        kept_because=(result.kept if result else "") or None,
    )


def shown_source(source: Mapping[str, Any]) -> str:
    """A source in words. An address may be a secret of who started the job: it loses its user, its
    query and its fragment."""
    match source.get("type"):
        case "upload":
            name = source.get("name")
            return f"{name} (uploaded)" if name else "uploaded files"
        case "retry":
            return f"the failures of {source.get('job', 'another job')}"
        case "urls":
            return "a list of URLs"
        case "migration":
            return "images of the collection with its other model"
        case "stored-images":
            return f"stored images: {source.get('task')}"
        case "keys":
            count = source.get("count", 0)
            return f"{shown_place(source['of'])} ({count} {'key' if count == 1 else 'keys'})"
        case "list":
            return str(source.get("name", ""))[:SHOWN_CHARS] or "several sources"
    return shown_place(source)


def shown_place(source: Mapping[str, Any]) -> str:
    """The path or the address of a source, which loses its user, its query and its fragment."""
    place = str(source.get("path") or source.get("uri") or "")
    if "://" not in place:
        return place[:SHOWN_CHARS]
    parts = urlsplit(place)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))[
        :SHOWN_CHARS
    ]


def _shown_webhook(job: Job) -> str | None:
    """The state of the job's webhook in words; None when it has none."""
    if not job.webhook_reason or job.webhook == "delivered":
        return job.webhook or None
    tries = f"{job.webhook_tries} {'try' if job.webhook_tries == 1 else 'tries'}"
    return f"{job.webhook}: {job.webhook_reason} ({tries})"
