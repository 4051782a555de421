"""The ledger on plain Python: the twin that the Redis one is checked against, and for tests."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from clipfleet.common.ledger import (
    FINAL,
    Claim,
    Failure,
    Item,
    Job,
    NewJob,
    OpenChunk,
    Outcome,
    PlanLease,
    Refusal,
    check_outcome,
    unknown_job,
)


@dataclass
class _Chunk:
    items: tuple[Item, ...]
    attempt: int = 0
    token: int = 0
    lease_until: float = 0.0
    sent: float = 0.0


@dataclass
class _Entry:
    job: Job
    open: dict[int, _Chunk] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    fence: int = 0
    cursor: str = ""
    planner: str = ""
    planner_until: float = 0.0
    planner_token: int = 0

    @property
    def running(self) -> bool:
        return self.job.state == "running"

    def next_token(self) -> int:
        self.fence += 1
        return self.fence

    def add(self, items: Sequence[Item], attempt: int = 0) -> int:
        self.job = replace(self.job, chunks=self.job.chunks + 1)
        self.open[self.job.chunks] = _Chunk(tuple(items), attempt)
        return self.job.chunks

    def may_plan(self, token: int) -> bool:
        return self.running and self.planner_token == token and not self.job.planned

    def held(self, claim: Claim) -> _Chunk | None:
        chunk = self.open.get(claim.no)
        return chunk if chunk and chunk.token == claim.token else None


class MemoryLedger:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._made: dict[str, str] = {}

    def create(self, new: NewJob, idempotency_key: str = "") -> Job:
        with self._lock:
            if idempotency_key:
                made = self._made.setdefault(idempotency_key, new.id)
                if made != new.id:
                    return self.job(made)
            if new.id in self._entries:
                return self.job(new.id)
            job = Job(new=new, state="queued", created_at=self._clock())
            self._entries[new.id] = _Entry(job)
            return job

    def job(self, job_id: str) -> Job:
        return self._entry(job_id).job

    def jobs(self, limit: int = 50, offset: int = 0) -> list[Job]:
        newest = sorted(self._entries.values(), key=lambda e: e.job.created_at, reverse=True)
        return [entry.job for entry in newest[offset : offset + limit]]

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]:
        return self._entry(job_id).failures[offset : offset + limit]

    def cancel(self, job_id: str, reason: str = "") -> Job:
        with self._lock:
            entry = self._entry(job_id)
            if entry.job.state not in FINAL:
                now = self._clock()
                entry.open = {n: c for n, c in entry.open.items() if c.lease_until > now}
                entry.job = replace(entry.job, error=reason, planned=True)
                self._finish(entry, "cancelled")
            return entry.job

    def active(self) -> list[str]:
        return sorted(key for key, e in self._entries.items() if e.job.state not in FINAL)

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None:
        with self._lock:
            entry, now = self._entry(job_id), self._clock()
            if entry.job.state in FINAL:
                return None
            held = entry.planner_until > now
            if held and entry.planner != planner:
                return None
            if not held or entry.planner != planner:
                entry.planner, entry.planner_token = planner, entry.next_token()
            entry.planner_until = now + seconds
            if entry.job.state == "queued":
                entry.job = replace(entry.job, state="running", started_at=now)
            return PlanLease(entry.planner_token, entry.cursor, entry.job.planned)

    def estimate(self, job_id: str, images: int) -> None:
        with self._lock:
            entry = self._entry(job_id)
            entry.job = replace(entry.job, estimated=images)

    def plan(
        self, job_id: str, token: int, items: Sequence[Item], after: str, cursor: str
    ) -> int | None:
        with self._lock:
            entry = self._entry(job_id)
            if not entry.may_plan(token) or entry.cursor != after:
                return None
            entry.cursor = cursor
            entry.job = replace(entry.job, total=entry.job.total + len(items))
            return entry.add(items)

    def end_plan(self, job_id: str, token: int, error: str = "") -> bool:
        with self._lock:
            entry = self._entry(job_id)
            if not entry.may_plan(token):
                return False
            entry.job = replace(entry.job, planned=True, error=error)
            self._settle(entry)
            return True

    def open_chunks(self, job_id: str) -> list[OpenChunk]:
        now = self._clock()
        return [
            OpenChunk(
                no=no,
                size=len(chunk.items),
                attempt=chunk.attempt,
                leased=chunk.lease_until > 0,
                expired=0 < chunk.lease_until <= now,
                waited_s=now - chunk.sent if chunk.sent else float("inf"),
            )
            for no, chunk in sorted(self._entry(job_id).open.items())
        ]

    def items(self, job_id: str, no: int) -> tuple[Item, ...]:
        chunk = self._entry(job_id).open.get(no)
        return chunk.items if chunk else ()

    def sent(self, job_id: str, no: int) -> None:
        with self._lock:
            if chunk := self._entry(job_id).open.get(no):
                chunk.sent = self._clock()
                if chunk.lease_until <= chunk.sent:
                    chunk.lease_until = 0.0

    def split(self, job_id: str, chunk: OpenChunk, at: int) -> bool:
        with self._lock:
            entry = self._entry(job_id)
            items = self.items(job_id, chunk.no)
            if not 0 < at < len(items) or not self._free(entry, chunk):
                return False
            del entry.open[chunk.no]
            entry.add(items[:at], chunk.attempt - 1)
            entry.add(items[at:], chunk.attempt - 1)
            return True

    def bury(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        with self._lock:
            entry = self._entry(job_id)
            if not self._free(entry, chunk):
                return False
            del entry.open[chunk.no]
            entry.failures.append(failure)
            entry.job = replace(entry.job, failed=entry.job.failed + 1)
            self._settle(entry)
            return True

    def claim(self, job_id: str, no: int, worker: str, seconds: float) -> Claim | Refusal:  # noqa: ARG002
        with self._lock:
            entry, now = self._entry(job_id), self._clock()
            chunk = entry.open.get(no)
            if not entry.running:
                return Refusal.CLOSED
            if chunk is None:
                return Refusal.DONE
            if chunk.lease_until > now:
                return Refusal.HELD
            chunk.token, chunk.attempt = entry.next_token(), chunk.attempt + 1
            chunk.lease_until = now + seconds
            return Claim(job_id, no, chunk.token, chunk.attempt, chunk.items)

    def renew(self, claim: Claim, seconds: float) -> bool:
        with self._lock:
            entry = self._entry(claim.job_id)
            chunk = entry.held(claim)
            if not entry.running or chunk is None:
                return False
            chunk.lease_until = self._clock() + seconds
            return True

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        check_outcome(claim, outcome)
        with self._lock:
            entry = self._entry(claim.job_id)
            if entry.held(claim) is None:
                return False
            del entry.open[claim.no]
            entry.failures.extend(outcome.failures)
            entry.job = replace(
                entry.job,
                done=entry.job.done + outcome.done,
                skipped=entry.job.skipped + outcome.skipped,
                failed=entry.job.failed + len(outcome.failures),
                waiting="",
            )
            self._settle(entry)
            return True

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        with self._lock:
            entry = self._entry(claim.job_id)
            chunk = entry.held(claim)
            if chunk is None:
                return False
            if not entry.running:
                del entry.open[claim.no]
                return True
            chunk.attempt -= 0 if count_attempt else 1
            chunk.token, chunk.lease_until, chunk.sent = 0, 0.0, 0.0
            return True

    def note(self, job_id: str, waiting: str) -> None:
        with self._lock:
            entry = self._entry(job_id)
            if entry.running:
                entry.job = replace(entry.job, waiting=waiting)

    def _entry(self, job_id: str) -> _Entry:
        if job_id not in self._entries:
            raise unknown_job(job_id)
        return self._entries[job_id]

    def _free(self, entry: _Entry, seen: OpenChunk) -> bool:
        chunk = entry.open.get(seen.no)
        if chunk is None or not entry.running:
            return False
        return chunk.lease_until <= self._clock() and chunk.attempt == seen.attempt

    def _settle(self, entry: _Entry) -> None:
        job = entry.job
        if not entry.running or not job.planned or entry.open:
            return
        if job.error:
            self._finish(entry, "failed")
        elif job.failed and not job.done + job.skipped:
            entry.job = replace(job, error="every image failed; the failures say why")
            self._finish(entry, "failed")
        else:
            self._finish(entry, "partial" if job.failed else "succeeded")

    def _finish(self, entry: _Entry, state: str) -> None:
        now = self._clock()
        entry.job = replace(entry.job, state=state, finished_at=now, waiting="")  # type: ignore[arg-type]
