"""The ledger on Redis. Redis Cluster is not supported: the script computes its keys."""

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import merge
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import redis
from pydantic import TypeAdapter

from clipfleet.common.blobs import Blobs
from clipfleet.common.http.schemas import JobState
from clipfleet.common.ledger import (
    ANY_ROOM,
    KEEP_IDEMPOTENCY_S,
    RATE_WEIGHT,
    STATES,
    UNLIMITED,
    VERSIONS,
    Claim,
    Failure,
    Item,
    Job,
    JobRoom,
    Look,
    MirrorResult,
    NewJob,
    OpenChunk,
    Outcome,
    PlanLease,
    Round,
    TooManyJobs,
    Unknown,
    any_remote,
    bisect_items,
    brief,
    check_outcome,
    mirror_key,
    mirror_runs,
    no_retry,
    random_name,
    unknown_job,
)
from clipfleet.common.ledger.failure_parts import FailureParts, as_json
from clipfleet.common.redis.client import translating_redis_errors
from clipfleet.common.versions import parse_versioned, skipping_unknown_versions

log = logging.getLogger(__name__)

ROOT = "clipfleet:"
SCRIPT = (Path(__file__).parent / "ledger.lua").read_text()
JOB_ID = re.compile(r"[0-9A-Za-z-]{1,64}")  # no colon, which separates the parts of a key
PAGE = 100  # entries of an index in one read
REINDEX = 500  # jobs in one call of the script
MEND_PAUSE_S = 60.0  # before the next try, when the indices could not be repaired
KEPT_FAILURES = 1_000  # of one job in Redis; all others are in the blob store
KEPT_FAILURE_BYTES = 1_000_000  # likewise
NO_ROOM = WITH_PARTS = 2  # answers of the script: failures do not fit; the job has parts
ITEMS = TypeAdapter(tuple[Item, ...])


@dataclass(frozen=True)
class _Counts:
    """The sizes of the indices of jobs. Every release keeps the first two.

    Attributes:
        kept: the number of all jobs.
        active: the number of jobs that have not ended.
        states: the number of jobs in each state.
    """

    kept: int
    active: int
    states: dict[JobState, int]

    def are_right(self) -> bool:
        unfinished = self.states["queued"] + self.states["running"]
        return unfinished == self.active and sum(self.states.values()) == self.kept


class RedisLedger:
    """The ledger in Redis.

    Args:
        client: see `make_redis`.
        clock: returns unix seconds, for tests; without it, Redis' clock is used.
        unique: returns another name at each call.
        blobs: the blob store, for jobs with many failures; None: all failures stay in Redis.
    """

    def __init__(
        self,
        client: "redis.Redis",
        clock: Callable[[], float] | None = None,
        unique: Callable[[], str] = random_name,
        blobs: Blobs | None = None,
    ) -> None:
        self._redis, self._unique = client, unique
        self._parts = FailureParts(blobs)
        self._script = client.register_script(SCRIPT)
        self._clock = clock
        self._mend_again_at = float("-inf")

    def create(self, new: NewJob, idempotency_key: str = "", room: JobRoom = ANY_ROOM) -> Job:
        kept = brief(new)
        whole = "" if kept is new else new.model_dump_json()
        fields = (kept.model_dump_json(), whole, kept.v, new.collection, new.model, new.retry_of)
        idempotency = (idempotency_key, KEEP_IDEMPOTENCY_S)
        host = new.webhook.host if new.webhook else ""
        mirror = (new.collection if new.mirror else "", mirror_key(new))
        who = (room.limit, room.key, host, *mirror, int(new.is_low))
        created = self._run("create", new.id, *fields, *idempotency, *who)
        if isinstance(created, list):
            raise TooManyJobs(room, *created)
        answer = _text(created)
        if answer == "!gone":
            raise unknown_job(new.retry_of)
        if answer.startswith("!mirror "):
            raise mirror_runs(answer.partition(" ")[2])
        if answer.startswith("!"):
            raise no_retry(new.retry_of, answer[1:])
        return self.job(answer)

    def require_room(self, room: JobRoom) -> None:
        if counts := self._run("crowd", "", room.limit, room.key):
            raise TooManyJobs(room, *counts)

    def whole(self, job_id: str) -> NewJob:
        job = self.job(job_id)
        raw = self._call(lambda c: c.get(f"{ROOT}job:{job_id}:source"))
        return parse_versioned(NewJob, raw, "job") if raw else job.new

    def find_by_idempotency_key(self, idempotency_key: str) -> Job | None:
        job_id = self._call(lambda c: c.get(f"{ROOT}idempotency:{idempotency_key}"))
        (row,) = self._rows([_text(job_id)]) if job_id else ({},)
        return _job(row) if row else None

    def job(self, job_id: str) -> Job:
        (row,) = self._rows([job_id]) if JOB_ID.fullmatch(job_id) else ({},)
        if not row:
            raise unknown_job(job_id)
        return _job(row)

    def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        collection: str = "",
        states: Collection[str] = (),
        sees: Callable[[str], bool] | None = None,
    ) -> list[Job]:
        if states or sees:
            self._mend_indices()
        indices = self._indices(collection, states, sees)
        jobs: list[Job] = []
        ids = self._newest(indices, offset)
        while len(jobs) < limit and (page := list(islice(ids, limit - len(jobs)))):
            rows = [row for row in self._rows(page) if row]
            for row in rows:
                if not states or _text(row[b"state"]) in states:  # or another release changed it
                    with skipping_unknown_versions():
                        jobs.append(_job(row))
        return jobs

    def count_jobs(self) -> dict[JobState, int]:
        self._mend_indices()
        return self._counts().states

    def _indices(
        self, collection: str, states: Collection[str], sees: Callable[[str], bool] | None
    ) -> list[str]:
        """The keys of the sorted sets that contain the jobs to list, each job once."""
        kinds = [f"{ROOT}jobs:state:{state}" for state in sorted(set(states))] or [f"{ROOT}jobs"]
        if collection:
            names = [collection] if sees is None or sees(collection) else []
        elif sees is None:
            return kinds
        else:
            names = self._call(lambda c: c.smembers(f"{ROOT}jobs:collections"))
            names = [name for collection_name in names if sees(name := _text(collection_name))]
        return [f"{kind}:in:{name}" for kind in kinds for name in sorted(names)]

    def _newest(self, indices: Sequence[str], offset: int) -> Iterator[str]:
        """The ids in several indices, the newest first, from the offset on."""
        if len(indices) == 1:
            yield from (job_id for _, job_id in self._pages(indices[0], offset))
            return
        ranked = merge(*(self._pages(index) for index in indices), reverse=True)
        yield from (job_id for _, job_id in islice(ranked, offset, None))

    def _pages(self, index: str, offset: int = 0) -> Iterator[tuple[float, str]]:
        for begin in count(offset, PAGE):
            page = self._page(index, begin)
            yield from ((score, _text(job_id)) for job_id, score in page)
            if len(page) < PAGE:
                return

    def _page(self, index: str, begin: int) -> list[tuple[bytes, float]]:
        entries: list[tuple[bytes, float]] = self._call(
            lambda c: c.zrevrange(index, begin, begin + PAGE - 1, withscores=True)
        )
        return entries

    def _counts(self) -> "_Counts":
        kept, active, *states = self._run("counts", "")
        return _Counts(kept, active, dict(zip(STATES, states, strict=True)))

    def _mend_indices(self) -> None:
        """Add jobs to the indices that parts of another release wrote without an index by state."""
        if self._counts().are_right() or time.monotonic() < self._mend_again_at:
            return
        active = self._call(lambda c: c.smembers(f"{ROOT}jobs:active"))
        self._reindex(map(_text, active))
        for index in ("jobs", *(f"jobs:state:{state}" for state in STATES)):
            if self._counts().are_right():
                return
            self._reindex([job_id for _, job_id in self._pages(f"{ROOT}{index}")])
        if not self._counts().are_right():
            log.warning("the indices of jobs are inconsistent: %s", self._counts())
            self._mend_again_at = time.monotonic() + MEND_PAUSE_S

    def _reindex(self, ids: Iterable[str]) -> None:
        """Repair the indices until they are right; the newest jobs first, which usually miss."""
        rest = iter(ids)
        while page := list(islice(rest, REINDEX)):
            self._run("reindex", "", *page)
            if self._counts().are_right():
                return

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]:
        here, parts = self._run("failures", job_id, limit, offset)
        failures = [Failure.model_validate_json(row) for row in here]
        for name, before, size in parts:
            rows_in_part = slice(max(0, offset - before), offset + limit - before)
            failures += self._parts.read(job_id, _text(name), size, rows_in_part)
        return failures

    def cancel(self, job_id: str, reason: str = "") -> Job:
        self.job(job_id)
        self._run("cancel", job_id, reason)
        return self.job(job_id)

    def begin_removal(self, job_id: str, reason: str = "") -> Job:
        self.job(job_id)
        self._run("begin_removal", job_id, reason)
        return self.job(job_id)

    def removals(self, limit: int) -> list[str]:
        return [_text(job_id) for job_id in self._run("removals", "", limit)]

    def remove(self, job_id: str) -> None:
        """Delete a job; its parts first, since nothing else refers to them."""
        if not JOB_ID.fullmatch(job_id):
            raise unknown_job(job_id)
        if self._call(lambda c: c.hexists(f"{ROOT}job:{job_id}", "has_parts")):
            self._parts.delete(job_id)
        removed = self._run("remove", job_id)
        if not removed:
            raise unknown_job(job_id)
        if removed == WITH_PARTS:  # a worker may have written another part since
            self._parts.delete(job_id)

    def acquire_cleanup_lock(self, keeper: str, seconds: float) -> bool:
        return bool(self._run("acquire_cleanup_lock", "", keeper, seconds))

    def ended(self, seconds_ago: float, limit: int) -> list[str]:
        return [_text(job_id) for job_id in self._run("ended", "", seconds_ago, limit)]

    def active(self) -> list[str]:
        ids = self._call(lambda c: c.smembers(f"{ROOT}jobs:active"))
        return sorted(_text(job_id) for job_id in ids)

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
        args: tuple[str | float, ...] = (planner, seconds, limit, offers, max_attempts, *due)
        looks, offered, owned = self._run("tend", "", *args)
        return Round(tuple(_look(*row) for row in looks), tuple(map(_text, offered)), owned)

    def owned(self, planner: str) -> list[str]:
        return sorted(map(_text, self._run("owned", "", planner)))

    def deregister_planner(self, planner: str) -> None:
        self._run("deregister_planner", "", planner)

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None:
        answer = self._run("lease", job_id, planner, seconds, self._unique())
        return None if answer is None else _lease(*answer)

    def estimate(self, job_id: str, images: int) -> None:
        self._run("estimate", job_id, images)

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
        chunk = (self._unique(), _json(items), len(items), _remote(items))
        name = self._run("plan", job_id, token, *chunk, after, cursor, _notes(notes), skipped)
        return None if name is None else _text(name)

    def finish_planning(
        self,
        job_id: str,
        token: str,
        after: str,
        error: str = "",
        notes: Mapping[str, int] | None = None,
    ) -> bool:
        return bool(self._run("finish_planning", job_id, token, after, error, _notes(notes)))

    def begin_close(self, job_id: str, token: str) -> Literal["begun", "wait", "lost"]:
        state: Literal["begun", "wait", "lost"] = _text(self._run("begin_close", job_id, token))  # type: ignore[assignment]
        return state

    def close(self, job_id: str, token: str, result: MirrorResult, error: str = "") -> bool:
        return bool(self._run("close", job_id, token, json.dumps(asdict(result)), error))

    def open_chunks(self, job_id: str) -> list[OpenChunk]:
        rows = self._run("open", job_id)
        chunks = [_open_chunk(*row) for row in rows]
        return sorted(chunks, key=lambda chunk: chunk.name)

    def items(self, job_id: str, chunk: str) -> tuple[Item, ...]:
        raw = self._call(lambda c: c.hget(f"{ROOT}job:{job_id}:chunk:{chunk}", "items"))
        return ITEMS.validate_json(raw) if raw else ()

    def requeue(self, job_id: str, chunk: OpenChunk) -> bool:
        return bool(self._run("requeue", job_id, chunk.name, chunk.attempt))

    def pending(self, model: str, limit: int) -> int:
        return int(self._run("pending", "", model, limit)) if limit > 0 else 0

    def split(self, job_id: str, chunk: OpenChunk) -> bool:
        items = self.items(job_id, chunk.name)
        if len(items) < 2:
            return False
        parts: list[str | int] = []
        for part, attempts in bisect_items(items, chunk):
            parts += [self._unique(), _json(part), len(part), attempts, _remote(part)]
        return bool(self._run("split", job_id, chunk.name, chunk.attempt, len(items), *parts))

    def quarantine(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        def quarantine(part: str, *failures: str | int) -> int:
            return int(self._run("quarantine", job_id, chunk.name, chunk.attempt, part, *failures))

        return self._with_failures(job_id, self._unique(), [failure], quarantine)

    def claim(
        self, model: str, worker: str, seconds: float, max_attempts: int, *, remote: bool = False
    ) -> Claim | Unknown | None:
        versions = ",".join(map(str, VERSIONS))
        options = (worker, seconds, self._unique(), max_attempts, versions, int(remote))
        answer = self._run("claim", "", model, *options)
        if not isinstance(answer, list):
            return None if answer is None else Unknown(_text(answer))
        job_id, chunk, token, attempt, items, ready, since = answer
        return Claim(
            _text(job_id),
            _text(chunk),
            _text(token),
            int(attempt),
            ITEMS.validate_json(items),
            more=bool(ready),
            since=float(since),
        )

    def renew(self, claim: Claim, seconds: float) -> bool:
        return self._held("renew", claim, seconds)

    def suspect(self, claim: Claim, index: int | None) -> bool:
        return self._held("suspect", claim, "" if index is None else index)

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        check_outcome(claim, outcome)
        counts = (
            len(claim.items), outcome.done, outcome.skipped, outcome.replaced, outcome.updated
        )  # fmt: skip
        rate = (outcome.rate, RATE_WEIGHT)
        chunk = (self._unique(), _json(outcome.rest), len(outcome.rest), claim.attempt - 1)
        rest = (*chunk, _remote(outcome.rest))
        kept = (_json(outcome.kept), len(outcome.kept), _remote(outcome.kept))
        args: tuple[str | int | float, ...]
        args = (claim.chunk, claim.token, *counts, *rate, *rest, *kept, len(outcome.failures))

        def mark(part: str, *failures: str | int) -> int:
            return int(self._run("mark", claim.job_id, *args, part, *failures))

        # A claim that keeps items is marked again, each time with fewer items: the name is unique.
        part = f"{claim.token}-{len(claim.items)}"
        return self._with_failures(claim.job_id, part, outcome.failures, mark)

    def _with_failures(
        self,
        job_id: str,
        name: str,
        failures: Sequence[Failure],
        count: Callable[..., int],
    ) -> bool:
        """Count failures in Redis or, when they do not fit, in a part of that name."""
        limits = (
            (KEPT_FAILURES, KEPT_FAILURE_BYTES) if self._parts.are_possible else (UNLIMITED,) * 2
        )
        counted = count("", *limits, *map(as_json, failures))
        if counted != NO_ROOM:
            return bool(counted)
        self._parts.write(job_id, name, failures)
        counted = count(name, *limits)
        if not counted and not self._call(lambda c: c.exists(f"{ROOT}job:{job_id}")):
            self._parts.delete(job_id)  # the job was removed since
        return bool(counted)

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        return self._held("release", claim, int(count_attempt))

    def _held(self, operation: str, claim: Claim, *args: str | int | float) -> bool:
        return bool(self._run(operation, claim.job_id, claim.chunk, claim.token, *args))

    def set_waiting_reason(self, job_id: str, waiting: str) -> None:
        self._run("set_waiting_reason", job_id, waiting)

    def _run(self, operation: str, job_id: str, *args: str | int | float) -> Any:
        clock = "" if self._clock is None else f"{self._clock():.6f}"
        return self._call(lambda _: self._script(args=[operation, clock, job_id, *args]))

    def _rows(self, ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        return self._each(ids, lambda pipe, job: pipe.hgetall(job))

    def _each(self, ids: Sequence[str], command: Callable[[Any, str], Any]) -> list[Any]:
        def run(client: Any) -> Any:
            pipe = client.pipeline(transaction=False)
            for job_id in ids:
                command(pipe, f"{ROOT}job:{job_id}")
            return pipe.execute()

        rows: list[Any] = self._call(run)
        return rows

    def _call(self, call: Callable[[Any], Any]) -> Any:
        with translating_redis_errors():
            return call(self._redis)


def _json(items: Sequence[Item]) -> str:
    return ITEMS.dump_json(tuple(items)).decode()


def _notes(notes: Mapping[str, int] | None) -> str:
    return json.dumps(notes) if notes else ""


def _remote(items: Sequence[Item]) -> int:
    return int(any_remote(items))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _lease(token: Any, cursor: Any, planned: Any) -> PlanLease:
    return PlanLease(_text(token), _text(cursor), _text(planned) == "1")


def _look(
    job_id: Any, token: Any, cursor: Any, planned: Any, total: Any, waiting: Any, open_: Any,
    open_images: Any, rate: Any, troubled: Any,
) -> Look:  # fmt: skip
    chunks = sorted((_open_chunk(*row) for row in troubled), key=lambda chunk: chunk.name)
    lease = _lease(token, cursor, planned)
    return Look(
        _text(job_id),
        lease,
        int(total),
        _text(waiting),
        int(open_),
        int(open_images),
        float(rate),
        tuple(chunks),
    )


def _open_chunk(
    name: Any, size: Any, attempt: Any, leased: Any, expired: Any, suspect: Any
) -> OpenChunk:
    return OpenChunk(
        name=_text(name),
        size=int(size),
        attempt=int(attempt),
        leased=bool(leased),
        expired=bool(leased) and bool(expired),
        suspect=int(suspect) if suspect else None,
    )


def _job(row: dict[bytes, bytes]) -> Job:
    text = {key.decode(): value.decode() for key, value in row.items()}
    counts = ("total", "estimated", "done", "failed", "skipped", "chunks")
    return Job(
        new=parse_versioned(NewJob, text["new"], "job"),
        state=text["state"],  # type: ignore[arg-type]  # written by the script only
        created_at=float(text["created_at"]),
        started_at=_time(text.get("started_at")),
        finished_at=_time(text.get("finished_at")),
        planned=text["planned"] == "1",
        error=text["error"],
        waiting=text["waiting"],
        retried_by=text.get("retried_by", ""),
        rate=float(text.get("rate", 0)),
        key=text.get("api_key", ""),
        notes=json.loads(text.get("notes", "{}")),
        replaced=int(text.get("replaced", 0)),
        updated=int(text.get("updated", 0)),
        webhook=text.get("webhook", ""),  # type: ignore[arg-type]
        webhook_reason=text.get("webhook_reason", ""),
        webhook_tries=int(text.get("webhook_tries", 0)),
        mirror=MirrorResult(**json.loads(text["mirror"])) if "mirror" in text else None,
        **{name: int(text[name]) for name in counts},
    )


def _time(raw: str | None) -> float | None:
    return float(raw) if raw else None
