"""Registered sources as the HTTP interface shows them."""

from collections.abc import Mapping
from typing import Any

from clipfleet.common.http.registered import RunOut, SourceOut, SourceState
from clipfleet.common.ledger.registered import RegisteredSource, Run, Waiting
from clipfleet.common.ledger.shown import shown_place, shown_source


def source_out(record: RegisteredSource, waiting: Waiting) -> SourceOut:
    """Return a source as the HTTP interface shows it.

    Args:
        record: the source.
        waiting: the keys of events that wait for it.
    """
    return SourceOut(
        name=record.name,
        collection=record.collection,
        source=shown_source(record.job["source"]),
        job=_shown_request(record.job),
        interval=record.interval_s,
        paused=record.paused,
        key=record.key or None,
        state=_state(record, waiting),
        problem=_problem(record),
        next_run=None if record.paused else record.next_run,
        running=_run_out(record.current),
        last_run=_run_out(record.last),
        waiting_keys=waiting.count,
        created_at=record.created_at,
    )


def _state(record: RegisteredSource, waiting: Waiting) -> SourceState:
    if record.current:
        return "running"
    if record.problem:
        return "blocked"
    if record.paused:
        return "paused"
    if (record.next_run is not None and record.next_run <= waiting.now) or waiting.count:
        return "due"
    return "idle" if record.next_run is None else "scheduled"


def _problem(record: RegisteredSource) -> str | None:
    """Why the source cannot run, or why its last job could not read it."""
    if record.problem:
        return record.problem
    if record.failures and record.last and record.last.error:
        return f"its last job failed: {record.last.error}"
    return None


def _run_out(run: Run | None) -> RunOut | None:
    if run is None:
        return None
    return RunOut(
        job=run.job,
        cause=run.cause,
        began_at=run.began_at,
        state=run.state or None,
        ended_at=run.ended_at,
        error=run.error or None,
    )


def _shown_request(job: Mapping[str, Any]) -> dict[str, Any]:
    """The request of a job, without secrets: addresses lose their users and queries."""
    shown = {**job, "source": _shown_parts(job["source"])}
    if webhook := job.get("webhook"):
        shown["webhook"] = {"url": shown_place({"uri": webhook["url"]})}
    return shown


def _shown_parts(source: Mapping[str, Any]) -> dict[str, Any]:
    shown = dict(source)
    if "uri" in source:
        shown["uri"] = shown_place(source)
    if "urls" in source:
        shown["urls"] = [shown_place({"uri": url}) for url in source["urls"]]
    if "sources" in source:
        shown["sources"] = [_shown_parts(part) for part in source["sources"]]
    return shown
