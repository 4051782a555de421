"""The ledger in memory: the reference that the one on Redis is tested against."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from clipfleet.common.http.schemas import JobState
from clipfleet.common.ledger import (
    ANY_ROOM,
    FINAL,
    LOOK_INTERVAL_S,
    OFFER_S,
    RATE_WEIGHT,
    STATES,
    Claim,
    Failure,
    Item,
    Job,
    JobRoom,
    MirrorResult,
    NewJob,
    OpenChunk,
    Outcome,
    PlanLease,
    Round,
    TooManyJobs,
    Unknown,
    bisect_items,
    brief,
    check_outcome,
    mirror_key,
    mirror_runs,
    no_retry,
    random_name,
    unknown_job,
)
from clipfleet.common.ledger.entries import Entry, removed
from clipfleet.common.ledger.notes import added
from clipfleet.common.shares import Owner, may_take

KEEP_SERVED_S = 3600  # as in ledger.lua


class MemoryLedger:
    """A ledger in the memory of one process, for tests. It is lost when the process ends.

    Args:
        clock: returns the time in unix seconds.
        unique: returns another name at each call.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, unique: Callable[[], str] = random_name
    ) -> None:
        self._clock, self._unique = clock, unique
        self.lock = self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._idempotency_keys: dict[str, str] = {}
        self._keeper = ("", 0.0)
        self._removing: dict[str, float] = {}
        self._served: dict[tuple[str, str], float] = {}  # by model and key: the last claim
        self._mirrors: dict[str, str] = {}  # the running mirror of each source
        self._closing: dict[str, str] = {}  # by collection: the mirror in its last step
        self._planners: dict[str, float] = {}  # by name: the time until which it counts as alive

    def create(self, new: NewJob, idempotency_key: str = "", room: JobRoom = ANY_ROOM) -> Job:
        with self._lock:
            if created := self.find_by_idempotency_key(idempotency_key):
                return created
            if new.id in self._entries:
                return self.job(new.id)
            if going_on := new.retry_of and self._running_retry(new):
                return self.job(going_on)
            self.require_room(room)
            if key := mirror_key(new):
                if (other := self._mirrors.get(key, "")) in self.active():
                    raise mirror_runs(other)
                self._mirrors[key] = new.id
            if new.retry_of:
                old = self._entry(new.retry_of)
                old.job = replace(old.job, retried_by=new.id)
            if idempotency_key:
                self._idempotency_keys[idempotency_key] = new.id
            job = Job(
                new=brief(new),
                state="queued",
                created_at=self._clock(),
                key=room.key,
                webhook="pending" if new.webhook else "",
            )
            self._entries[new.id] = Entry(job, look_at=self._clock(), whole=new)
            return job

    def change(self, job_id: str, **fields: Any) -> None:
        """Change fields of a job, for other parts in memory. They hold `lock`."""
        entry = self._entry(job_id)
        entry.job = replace(entry.job, **fields)

    def require_room(self, room: JobRoom) -> None:
        with self._lock:
            active = self.active()
            of_key = sum(self._entries[job_id].job.key == room.key for job_id in active)
            if not may_take(of_key if room.key else 0, room.limit - len(active)):
                raise TooManyJobs(room, len(active), of_key)

    def _running_retry(self, new: NewJob) -> str:
        """Return the id of another retry that has not ended, or ""."""
        old = self._entry(new.retry_of)
        if new.retry_of in self._removing:
            raise unknown_job(new.retry_of)
        if old.job.state not in FINAL:
            raise no_retry(new.retry_of, "running")
        if not old.job.failed:
            raise no_retry(new.retry_of, "nothing")
        return old.job.retried_by if old.job.retried_by in self.active() else ""

    def find_by_idempotency_key(self, idempotency_key: str) -> Job | None:
        job_id = self._idempotency_keys.get(idempotency_key)
        return self.job(job_id) if job_id else None

    def whole(self, job_id: str) -> NewJob:
        entry = self._entry(job_id)
        return entry.whole or entry.job.new

    def job(self, job_id: str) -> Job:
        return self._entry(job_id).job

    def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        collection: str = "",
        states: Collection[str] = (),
        sees: Callable[[str], bool] | None = None,
    ) -> list[Job]:
        jobs = [
            entry.job
            for entry in list(self._entries.values())
            if (not collection or entry.job.new.collection == collection)
            and (not states or entry.job.state in states)
            and (sees is None or sees(entry.job.new.collection))
        ]
        jobs.sort(key=lambda job: (job.created_at, job.id), reverse=True)
        return jobs[offset : offset + limit]

    def count_jobs(self) -> dict[JobState, int]:
        counts = Counter(entry.job.state for entry in list(self._entries.values()))
        return {state: counts[state] for state in STATES}

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]:
        return self._find(job_id).failures[offset : offset + limit]

    def begin_removal(self, job_id: str, reason: str = "") -> Job:
        job = self.cancel(job_id, reason)
        self._removing.setdefault(job_id, self._clock())
        return job

    def removals(self, limit: int) -> list[str]:
        begun = sorted((at, job_id) for job_id, at in list(self._removing.items()))
        return [job_id for _, job_id in begun][:limit]

    def remove(self, job_id: str) -> None:
        with self._lock:
            self._removing.pop(job_id, None)
            job = self._entry(job_id).job
            del self._entries[job_id]
            self._idempotency_keys = {
                key: made_job_id
                for key, made_job_id in self._idempotency_keys.items()
                if made_job_id != job_id
            }
            old = self._find(job.new.retry_of)
            if old.job.retried_by == job_id:
                old.job = replace(old.job, retried_by="")

    def acquire_cleanup_lock(self, keeper: str, seconds: float) -> bool:
        with self._lock:
            name, until = self._keeper
            if name not in ("", keeper) and until > self._clock():
                return False
            self._keeper = keeper, self._clock() + seconds
            return True

    def ended(self, seconds_ago: float, limit: int) -> list[str]:
        last = self._clock() - seconds_ago
        jobs = [entry.job for entry in list(self._entries.values())]
        ends = [(job.finished_at, job.id) for job in jobs if job.finished_at is not None]
        return [job_id for end, job_id in sorted(ends) if end <= last][:limit]

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
        return sorted(key for key, e in list(self._entries.items()) if e.job.state not in FINAL)

    def tend(
        self,
        planner: str,
        seconds: float,
        *,
        limit: int,
        offers: int,
        max_attempts: int,
        due: Collection[str] = (),
    ) -> Round:
        with self._lock:
            now = self._clock()
            self._keep_alive(planner, seconds)
            for name in [name for name, until in self._planners.items() if until <= now]:
                self.deregister_planner(name)
            room = min(offers, self._share_out(planner))
            for entry in self._planned_by(planner):
                if entry.job.id in due:
                    entry.look_at = now
            looked = self._due("", room), self._due(planner, limit)
            for entry in looked[0]:
                entry.look_at = now + OFFER_S
            return Round(
                looks=tuple(entry.look(now, LOOK_INTERVAL_S, max_attempts) for entry in looked[1]),
                offered=tuple(entry.job.id for entry in looked[0]),
                owned=len(self._planned_by(planner)),
            )

    def _keep_alive(self, planner: str, seconds: float) -> None:
        if self._planners.get(planner, 0.0) < self._clock() + seconds * 2 / 3:
            self._planners[planner] = self._clock() + seconds

    def _is_alive(self, planner: str) -> bool:
        return self._planners.get(planner, 0.0) > self._clock()

    def _planned_by(self, planner: str) -> list[Entry]:
        """The jobs of a planner, the one that is due next first; "": jobs without a planner."""
        entries = [e for e in self._entries.values() if e.job.state not in FINAL]
        mine = [entry for entry in entries if entry.planner == planner]
        return sorted(mine, key=lambda entry: (entry.look_at, entry.job.id))

    def _due(self, planner: str, limit: int) -> list[Entry]:
        now = self._clock()
        return [e for e in self._planned_by(planner) if e.look_at <= now][:limit]

    def _share_out(self, planner: str) -> int:
        """How many more jobs the planner may have.

        When another planner has none, a planner with many more than its share loses the surplus.
        """
        mine, active = self._planned_by(planner), len(self.active())
        has_idle = not all(self._planned_by(name) for name in self._planners)
        share = -(-active // len(self._planners))
        if not has_idle or len(mine) <= share + max(1, share / 4):
            return max(0, share - len(mine))
        for entry in mine[share:]:
            entry.set_free(self._clock())
        return 0

    def owned(self, planner: str) -> list[str]:
        return sorted(entry.job.id for entry in self._planned_by(planner))

    def deregister_planner(self, planner: str) -> None:
        with self._lock:
            for entry in self._planned_by(planner):
                entry.set_free(self._clock())
            self._planners.pop(planner, None)

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None:
        with self._lock:
            entry, now, token = self._find(job_id), self._clock(), self._unique()
            if entry.job.state in FINAL:
                return None
            held = bool(entry.planner) and self._is_alive(entry.planner)
            if held and entry.planner != planner:
                return None
            self._keep_alive(planner, seconds)
            if not held:
                entry.planner, entry.planner_token, entry.look_at = planner, token, now
            if entry.job.state == "queued":
                entry.job = replace(entry.job, state="running", started_at=now)
            return entry.lease

    def estimate(self, job_id: str, images: int) -> None:
        with self._lock:
            entry = self._find(job_id)
            entry.job = replace(entry.job, estimated=images)

    def plan(
        self,
        job_id: str,
        token: str,
        items: Sequence[Item],
        after: str,
        cursor: str,
        notes: Mapping[str, int] | None = None,
        skipped: int = 0,
    ) -> str | None:
        with self._lock:
            entry, unique = self._find(job_id), self._unique()
            if not entry.may_plan(token) or entry.cursor != after:
                return None
            entry.cursor = cursor
            entry.job = replace(
                entry.job,
                total=entry.job.total + len(items) + skipped,
                skipped=entry.job.skipped + skipped,
                notes=added(entry.job.notes, notes or {}),
            )
            return entry.add(unique, items) if items else ""

    def finish_planning(
        self,
        job_id: str,
        token: str,
        after: str,
        error: str = "",
        notes: Mapping[str, int] | None = None,
    ) -> bool:
        with self._lock:
            entry = self._find(job_id)
            if not entry.may_plan(token) or entry.cursor != after:
                return False
            sums = added(entry.job.notes, notes or {})
            entry.job = replace(entry.job, planned=True, error=error, notes=sums)
            self._settle(entry)
            entry.look_by(self._clock())
            return True

    def begin_close(self, job_id: str, token: str) -> Literal["begun", "wait", "lost"]:
        with self._lock:
            entry = self._find(job_id)
            if not entry.may_close(token):
                return "lost"
            other = self._closing.setdefault(entry.job.new.collection, job_id)
            if other != job_id and other in self.active():
                return "wait"
            self._closing[entry.job.new.collection] = job_id
            return "begun"

    def close(self, job_id: str, token: str, result: MirrorResult, error: str = "") -> bool:
        with self._lock:
            entry = self._find(job_id)
            if not entry.may_close(token):
                return False
            if self._closing.get(entry.job.new.collection) == job_id:
                del self._closing[entry.job.new.collection]
            entry.job = replace(entry.job, mirror=result, error=error)
            self._settle(entry)
            return True

    def open_chunks(self, job_id: str) -> list[OpenChunk]:
        now = self._clock()
        with self._lock:
            open_chunks = sorted(self._find(job_id).open.items())
            return [chunk.seen(name, now) for name, chunk in open_chunks]

    def items(self, job_id: str, chunk: str) -> tuple[Item, ...]:
        kept = self._find(job_id).open.get(chunk)
        return kept.items if kept else ()

    def requeue(self, job_id: str, chunk: OpenChunk) -> bool:
        with self._lock:
            entry = self._find(job_id)
            if not self._free(entry, chunk):
                return False
            entry.open[chunk.name].lease_until = 0.0
            return True

    def pending(self, model: str, limit: int) -> int:
        with self._lock:
            entries = [entry for entry in self._entries.values() if entry.job.new.model == model]
            return min(limit, sum(len(entry.pending) for entry in entries))

    def split(self, job_id: str, chunk: OpenChunk) -> bool:
        with self._lock:
            entry = self._find(job_id)
            items = self.items(job_id, chunk.name)
            if len(items) < 2:
                return False
            uniques = [self._unique(), self._unique()]
            if not self._free(entry, chunk):
                return False
            since = entry.open.pop(chunk.name).since
            for unique, (part, attempts) in zip(uniques, bisect_items(items, chunk), strict=True):
                entry.open[entry.add(unique, part, attempts)].since = since
            return True

    def quarantine(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        with self._lock:
            entry = self._find(job_id)
            if not self._free(entry, chunk):
                return False
            del entry.open[chunk.name]
            entry.failures.append(failure)
            entry.job = replace(entry.job, failed=entry.job.failed + 1)
            self._settle(entry)
            return True

    def claim(
        self,
        model: str,
        worker: str,  # noqa: ARG002
        seconds: float,
        max_attempts: int,
        *,
        remote: bool = False,
    ) -> Claim | Unknown | None:
        with self._lock:
            now, token = self._clock(), self._unique()
            for entry in self._ready(model, remote):
                for name in entry.pending:
                    chunk = entry.open[name]
                    if chunk.attempt >= max_attempts or chunk.remote != remote:
                        continue
                    chunk.token, chunk.attempt = token, chunk.attempt + 1
                    chunk.lease_until, chunk.suspect = now + seconds, None
                    chunk.since = chunk.since or now
                    entry.served_at = now
                    self._serve(entry, now)
                    entry.look_by(now + seconds)
                    return Claim(
                        entry.job.id,
                        name,
                        token,
                        chunk.attempt,
                        chunk.items,
                        more=bool(self._ready(model, remote)),
                        since=chunk.since,
                    )
            return None

    def _serve(self, entry: Entry, now: float) -> None:
        self._served = {owner: at for owner, at in self._served.items() if at > now - KEEP_SERVED_S}
        if entry.job.key:
            self._served[entry.job.new.model, entry.job.key] = now

    def _ready(self, model: str, remote: bool) -> list[Entry]:
        """The entries with pending chunks of that kind, the one to serve next first."""
        running = [
            entry
            for entry in self._entries.values()
            if entry.job.new.model == model and entry.running
        ]
        in_hand = Counter[Owner]()
        for entry in running:
            in_hand[entry.job.owner.group] += entry.in_hand

        def turn(entry: Entry) -> tuple[bool, int, float, str, int, float, str]:
            job = entry.job
            served_at = owner_served_at = entry.served_at or job.created_at
            if job.key:
                owner_served_at = self._served.get((model, job.key), 0.0)
            name = f"key:{job.key}" if job.key else f"job:{job.id}"
            first = job.new.is_low, in_hand[job.owner.group], owner_served_at, name
            return *first, entry.in_hand, served_at, job.id

        ready = [
            entry
            for entry in running
            if any(entry.open[name].remote == remote for name in entry.pending)
        ]
        return sorted(ready, key=turn)

    def renew(self, claim: Claim, seconds: float) -> bool:
        with self._lock:
            entry = self._find(claim.job_id)
            chunk = entry.held(claim)
            if not entry.running or chunk is None:
                return False
            chunk.lease_until = self._clock() + seconds
            return True

    def suspect(self, claim: Claim, index: int | None) -> bool:
        with self._lock:
            chunk = self._find(claim.job_id).held(claim)
            if chunk:
                chunk.suspect = index
            return chunk is not None

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        check_outcome(claim, outcome)
        with self._lock:
            entry, unique = self._find(claim.job_id), self._unique()
            chunk = entry.held(claim)
            if chunk is None or len(chunk.items) != len(claim.items):
                return False
            if outcome.kept:
                chunk.items = outcome.kept
            else:
                del entry.open[claim.chunk]
            entry.failures.extend(outcome.failures)
            entry.job = replace(
                entry.job,
                done=entry.job.done + outcome.done,
                skipped=entry.job.skipped + outcome.skipped,
                replaced=entry.job.replaced + outcome.replaced,
                updated=entry.job.updated + outcome.updated,
                failed=entry.job.failed + len(outcome.failures),
                waiting="",
                rate=_averaged(entry.job.rate, outcome.rate),
            )
            if outcome.rest and entry.running:
                rest = entry.add(unique, outcome.rest, claim.attempt - 1)
                entry.open[rest].since = chunk.since
            self._settle(entry)
            if not entry.job.planned:
                entry.look_by(self._clock())
            return True

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        with self._lock:
            entry = self._find(claim.job_id)
            chunk = entry.held(claim)
            if chunk is None:
                return False
            if not entry.running:
                del entry.open[claim.chunk]
                return True
            chunk.attempt -= 0 if count_attempt else 1
            chunk.token, chunk.lease_until = "", 0.0
            if count_attempt:
                entry.look_by(self._clock())
            return True

    def set_waiting_reason(self, job_id: str, waiting: str) -> None:
        with self._lock:
            entry = self._find(job_id)
            if entry.running:
                entry.job = replace(entry.job, waiting=waiting)

    def _entry(self, job_id: str) -> Entry:
        if job_id not in self._entries:
            raise unknown_job(job_id)
        return self._entries[job_id]

    def _find(self, job_id: str) -> Entry:
        return self._entries.get(job_id) or removed()

    def _free(self, entry: Entry, seen: OpenChunk) -> bool:
        chunk = entry.open.get(seen.name)
        if chunk is None or not entry.running:
            return False
        return chunk.lease_until <= self._clock() and chunk.attempt == seen.attempt

    def _settle(self, entry: Entry) -> None:
        job = entry.job
        if not entry.running or not job.planned or entry.open:
            return
        if job.error:
            self._finish(entry, "failed")
        elif job.done + job.skipped + job.failed != job.total:
            raise AssertionError(f"the counts of job {job.id} do not add up: {job}")
        elif job.failed and not job.done + job.skipped:
            entry.job = replace(job, error="every image failed; the failures say why")
            self._finish(entry, "failed")
        elif job.new.mirror and not job.mirror:
            entry.look_by(self._clock())
        else:
            self._finish(entry, "partial" if job.failed else "succeeded")

    def _finish(self, entry: Entry, state: str) -> None:
        now = self._clock()
        entry.job = replace(entry.job, state=state, finished_at=now, waiting="")  # type: ignore[arg-type]


def _averaged(before: float, rate: float) -> float:
    """The moving average of the rate, rounded like that of the script."""
    if not rate:
        return before
    return round((before or rate) + RATE_WEIGHT * (rate - (before or rate)), 6)
