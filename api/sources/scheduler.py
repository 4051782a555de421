"""Starts the jobs of registered sources: when they are due, on request, and for events.

Runs in every gateway, since only gateways know the API keys, whose rights are checked at each run.
Several gateways share the work: see `Registry.due` and `Registry.save`.

A run is begun in three steps: its job's id is recorded, the job is created under this id, and that
is recorded. A gateway that is killed in between leaves a record with which another one goes on, and
a job that is created twice under one id is one job.
"""

import asyncio
import json
import logging
import math
import time
from typing import Any

from clipfleet.api.auth.access import Access
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.jobs.requests import describe_job
from clipfleet.api.jobs.service import new_job_id
from clipfleet.api.sources.events import reads_keys
from clipfleet.api.sources.stream import StreamReader
from clipfleet.common.collection import Collection
from clipfleet.common.errors import (
    ClipfleetError,
    Conflict,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from clipfleet.common.http.registered import Cause
from clipfleet.common.http.schemas import JobIn
from clipfleet.common.ledger import FINAL, Job, JobRoom, NewJob, TooManyJobs
from clipfleet.common.ledger.registered import (
    MAX_LOOK_S,
    Keys,
    Look,
    RegisteredSource,
    Registry,
    Run,
    Waiting,
    unknown_source,
)
from clipfleet.common.process.logs import OutageLog, log_context
from clipfleet.common.versions import OtherVersion, warn_once

log = logging.getLogger(__name__)

INTERVAL_S = 1.0  # between two rounds
ROUND_S, ROUND_TIMEOUT_S = 5.0, 60.0
MAX_LOOKS = 20  # sources that are taken at once
HOLD_S = 10.0  # after which another gateway looks at sources that this one has taken
MIN_FOLLOW_S, MAX_FOLLOW_S = 1.0, 10.0  # between two looks at a job that is under way
FOLLOW_SHARE = 0.05  # of the age of the job
BLOCKED_S = 15.0  # between two tries of a source that cannot run
NO_ROOM_S = 10.0  # the same when there are too many jobs
MAX_BACKOFF_S = 3_600.0  # longest pause after runs of events that failed as a whole
KEYS_OF_RUN = 10_000  # of one job
TRIES = 5  # of a change that other processes make at the same time


class Blocked(Exception):
    """A source cannot run now.

    Attributes:
        error: why.
        is_recorded: whether the record of the source says so already.
    """

    def __init__(self, error: ClipfleetError, *, is_recorded: bool = False) -> None:
        super().__init__(error.detail)
        self.error, self.is_recorded = error, is_recorded


class Scheduler:
    """Looks at sources that are due, and starts and follows their jobs.

    Args:
        gateway: has the registry, the ledger and the catalogue.
        access: the API keys.
    """

    def __init__(self, gateway: Gateway, access: Access) -> None:
        self._gateway, self._access = gateway, access
        self._registry: Registry = gateway.registry
        self._ledger, self._catalogue = gateway.ledger, gateway.catalogue
        self._stream: StreamReader | None = None
        if gateway.event_stream:
            limit = gateway.settings.limits.source_events
            self._stream = StreamReader(
                gateway.event_stream, self._registry, self._catalogue, limit
            )

    async def run(self) -> None:
        """Run rounds for ever. A round that fails is repeated."""
        outage = OutageLog(log, "registered sources are not looked at")
        while True:
            try:
                if self._stream:
                    await self._gateway.call(self._stream.round, timeout_s=ROUND_TIMEOUT_S)
                await self._gateway.call(self.round, timeout_s=ROUND_TIMEOUT_S)
                outage.back()
            except Unavailable as error:
                outage.away(error.detail)
            except Exception:
                log.exception("registered sources cannot be looked at now")
            await asyncio.sleep(INTERVAL_S)

    def round(self) -> int:
        """Look at the sources that are due, and return their number.

        Raises:
            Unavailable: Redis is away. What was due is due again later.
        """
        count, until = 0, time.monotonic() + ROUND_S
        while places := self._registry.due(MAX_LOOKS, HOLD_S):
            for collection, name in places:
                with log_context(collection=collection, source=name):
                    self._guarded_look(collection, name)
            count += len(places)
            if len(places) < MAX_LOOKS or time.monotonic() > until:
                break
        return count

    def _guarded_look(self, collection: str, name: str) -> None:
        """Look at one source. An error that concerns it alone does not stop the others."""
        try:
            self.look(collection, name)
        except OtherVersion as error:
            warn_once(f"this gateway does not run the source: {error.detail}")
        except Unavailable:
            raise
        except Exception:
            log.exception("source %s of %s cannot be run", name, collection)

    def look(self, collection: str, name: str) -> None:
        """Look at one source: follow its job, or start the one that is due.

        Raises:
            Unavailable: Redis is away.
        """
        for _ in range(TRIES):
            record = self._registry.find(collection, name)
            if record is None or self._catalogue.find(collection) is None:
                self._registry.remove(collection, name)
                return
            if self._advance(record):
                return

    def run_now(self, collection: str, name: str) -> Job:
        """Start a run on request, also of a source that is paused.

        Returns:
            Its job.

        Raises:
            NotFound: there is no such source.
            Conflict: a run is under way.
            Forbidden, Unauthorized: the key that registered the source may not run it any more.
            TooManyJobs: there is no room for a job.
            Unavailable: Redis is away.
        """
        for _ in range(TRIES):
            record = self._registry.find(collection, name)
            if record is None:
                raise unknown_source(collection, name)
            if record.current and not self._follow(record):
                continue
            record = self._registry.find(collection, name) or record
            if record.current:
                raise Conflict(
                    f"job {record.current.job} of source {name!r} is under way; run the source "
                    "again when it has ended",
                    job=record.current.job,
                )
            try:
                if started := self._begin(record, "request"):
                    return self._ledger.job(started.current.job if started.current else "")
            except Blocked as blocked:
                raise blocked.error from blocked
        raise Unavailable(f"source {name!r} is being changed by other requests; try again")

    def _advance(self, record: RegisteredSource) -> bool:
        """Do what is to be done for a source. Returns False when the source is to be looked at
        again at once: its run has ended, or another process has changed the record."""
        if record.current:
            return self._follow(record)
        waiting = self._registry.waiting(record.collection, record.name)
        cause = due_cause(record, waiting)
        if cause is None:
            return self._rest(record, waiting)
        try:
            return self._begin(record, cause) is not None
        except Blocked as blocked:
            return blocked.is_recorded or self._block(record, blocked.error, waiting.now)

    def _rest(self, record: RegisteredSource, waiting: Waiting) -> bool:
        """Say when to look again, and correct what is not true any more: times that are too far
        away, after the clock was set back, and the reason why the source cannot run."""
        changes: dict[str, Any] = {}
        interval, now = record.interval_s, waiting.now
        if interval and record.next_run and record.next_run > now + max(interval, MAX_BACKOFF_S):
            changes["next_run"] = now + interval
        for name in ("retry_at", "keys_at"):
            if getattr(record, name) > now + MAX_BACKOFF_S:
                changes[name] = now
        if record.problem and now >= record.retry_at:
            try:
                self._describe(record, "")
                changes["problem"] = ""
            except Blocked as blocked:
                return self._block(record, blocked.error, now)
        return self._save(record, record.model_copy(update=changes), now) is not None

    def _block(self, record: RegisteredSource, error: ClipfleetError, now: float) -> bool:
        """Record why a source cannot run. It is tried again; what is due stays due."""
        return self._save(record, _blocked(record, error, now), now) is not None

    def _begin(self, record: RegisteredSource, cause: Cause) -> RegisteredSource | None:
        """Begin a run; None when another process has changed the record.

        Raises:
            Blocked: the source cannot run now.
        """
        self._describe(record, "")  # before anything is written
        now = self._registry.now()
        run = Run(job=new_job_id(), cause=cause, began_at=now)
        keys: Keys = "take" if cause == "events" else "keep"
        begun = self._save(record, record.model_copy(update={"current": run}), now, keys)
        return self._create(begun) if begun else None

    def _create(self, record: RegisteredSource) -> RegisteredSource | None:
        """Create the job of a run that has begun; None when the record was changed meanwhile.

        Raises:
            Blocked: the source cannot run now. The run has not begun then.
        """
        run, now = record.current, self._registry.now()
        assert run
        try:
            new = self._describe(record, run.job)
            if run.cause == "events":
                new = self._for_keys(new, record)
            room = JobRoom(self._gateway.settings.limits.active_jobs, record.key)
            self._ledger.create(new, room=room)
        except (Blocked, TooManyJobs, Conflict) as error:
            reason = error.error if isinstance(error, Blocked) else error
            undone = _blocked(record.model_copy(update={"current": None}), reason, now)
            self._save(record, undone, now, "restore")
            raise Blocked(reason, is_recorded=True) from error
        log.info("job %s of source %s created (%s)", run.job, record.name, run.cause)
        changes: dict[str, Any] = {"problem": "", "retry_at": 0.0}
        if run.cause == "schedule" and record.interval_s:
            changes["next_run"] = next_run(record.next_run or now, record.interval_s, now)
        changes["current"] = run.model_copy(update={"created": True})
        return self._save(record, record.model_copy(update=changes), now)

    def _follow(self, record: RegisteredSource) -> bool:
        """Look at the job of a run; False as for `_advance`."""
        run, now = record.current, self._registry.now()
        assert run
        try:
            job = self._ledger.job(run.job)
        except NotFound:
            if run.created:
                ended = run.model_copy(update={"state": "deleted", "ended_at": now})
                return self._end(record, ended, now, "drop")
            try:
                return self._create(record) is not None
            except Blocked:  # which the record says now
                return True
        if not run.created:  # a gateway was killed after it had created the job
            return self._create(record) is not None
        if job.state not in FINAL:
            age_s = max(0.0, now - run.began_at)
            pause_s = min(MAX_FOLLOW_S, max(MIN_FOLLOW_S, FOLLOW_SHARE * age_s))
            return self._save(record, record, now, follow_s=pause_s) is not None
        failed_whole = job.state == "failed" and not job.failed
        return self._end(record, ended_run(run, job), now, "restore" if failed_whole else "drop")

    def _end(self, record: RegisteredSource, ended: Run, now: float, keys: Keys) -> bool:
        """Record the end of a run. Returns False: another run may be due.

        After a job that could not read its source, keys of events wait again, and the pauses grow:
        the source may be wrong for long.
        """
        changes: dict[str, Any] = {"current": None, "last": ended}
        if keys == "restore":
            failures = record.failures + 1
            factor = 2 ** min(failures - 1, 20)
            changes |= {"failures": failures}
            changes["keys_at"] = now + min(MAX_BACKOFF_S, NO_ROOM_S * factor)
            if record.interval_s and record.next_run:
                pause_s = min(max(MAX_BACKOFF_S, record.interval_s), record.interval_s * factor)
                changes["next_run"] = max(record.next_run, ended.began_at + pause_s)
        else:
            changes |= {"failures": 0, "keys_at": 0.0}
        log.info("job %s of source %s has ended: %s", ended.job, record.name, ended.state)
        self._save(record, record.model_copy(update=changes), now, keys)
        return False

    def _describe(self, record: RegisteredSource, job_id: str) -> NewJob:
        """The job of a source, with the rights that its key has now.

        Raises:
            Blocked: its key may not start it any more, or may not read the source.
        """
        try:
            collection = self._catalogue.find(record.collection)
            if collection is None:
                raise unknown_source(record.collection, record.name)
            return self._new_job(record, collection).model_copy(update={"id": job_id})
        except Unavailable:
            raise
        except ClipfleetError as error:
            raise Blocked(error) from error

    def _new_job(self, record: RegisteredSource, collection: Collection) -> NewJob:
        try:
            body = JobIn.model_validate_json(json.dumps(record.job))
        except ValueError as error:
            raise InvalidRequest(
                f"the request of source {record.name!r} is not valid any more; register it again"
            ) from error
        owner = self._access.owner(record.key, record.collection)
        return describe_job(body, collection, self._access.grant(owner), self._gateway)

    def _for_keys(self, new: NewJob, record: RegisteredSource) -> NewJob:
        """The job of a run for events: it reads the keys of a source that can be read in part.

        Such a job is no mirror: it does not know what else is gone. The images whose keys are gone
        stay when a mirror would keep them.
        """
        if not reads_keys(new.source):
            return new
        keys = self._registry.taken(record.collection, record.name)
        removes = new.mirror is None or new.mirror.missing == "delete"
        source = {"type": "keys", "of": new.source, "count": len(keys), "removes": removes}
        changes = {"source": {**source, "keys": keys}, "v": 1, "mirror": None, "incremental": True}
        return new.model_copy(update=changes)

    def _save(
        self,
        before: RegisteredSource,
        after: RegisteredSource,
        now: float,
        keys: Keys = "keep",
        *,
        follow_s: float = MIN_FOLLOW_S,
    ) -> RegisteredSource | None:
        look = look_of(after, now, follow_s)
        return self._registry.save(before, after, look, keys, KEYS_OF_RUN)


def _blocked(record: RegisteredSource, error: ClipfleetError, now: float) -> RegisteredSource:
    """The record of a source that cannot run, and is tried again in a while."""
    if record.problem != error.detail:
        log.warning("source %s cannot run: %s", record.name, error.detail)
    pause_s = NO_ROOM_S if isinstance(error, TooManyJobs | Conflict) else BLOCKED_S
    return record.model_copy(update={"problem": error.detail, "retry_at": now + pause_s})


def ended_run(run: Run, job: Job) -> Run:
    """The run of a job that has ended."""
    return run.model_copy(
        update={"state": job.state, "error": job.error, "ended_at": job.finished_at}
    )


def due_cause(record: RegisteredSource, waiting: Waiting) -> Cause | None:
    """Why a run should begin now; None when none should."""
    now = waiting.now
    if record.paused or now < record.retry_at:
        return None
    if record.interval_s and record.next_run is not None and now >= record.next_run:
        return "schedule"
    return "events" if waiting.is_due and now >= record.keys_at else None


def next_run(due: float, interval_s: float, now: float) -> float:
    """When a schedule is due after a run that begins now.

    The times of a schedule keep their distance. Times that were missed are made up by this run.

    Args:
        due: when this run was due.
        interval_s: seconds between two runs.
        now: unix seconds, as the others.
    """
    missed = max(0, math.floor((now - due) / interval_s))
    return due + (missed + 1) * interval_s


def look_of(record: RegisteredSource, now: float, follow_s: float = MIN_FOLLOW_S) -> Look:
    """When to look at a source again.

    Args:
        record: the source, as it is saved.
        now: unix seconds.
        follow_s: the time until its job is looked at, seconds.
    """
    later = now + MAX_LOOK_S
    if record.current:
        at = now + follow_s if record.current.created else now
        return Look(at, at)
    soonest = max(now, record.retry_at)
    if record.problem:
        later = min(later, soonest)
    if record.paused:
        return Look(later, later)
    at = later
    if record.interval_s and record.next_run is not None:
        at = min(later, max(record.next_run, soonest))
    return Look(at, min(at, max(soonest, record.keys_at)))
