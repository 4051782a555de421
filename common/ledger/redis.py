"""The ledger on Redis (not Redis Cluster: the script names its keys itself)."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import redis
from pydantic import TypeAdapter

from clipfleet.common.connection import answering
from clipfleet.common.ledger import (
    KEEP_IDEMPOTENCY_S,
    RATE_WEIGHT,
    VERSIONS,
    Claim,
    Failure,
    Item,
    Job,
    NewJob,
    OpenChunk,
    Outcome,
    PlanLease,
    Unknown,
    any_remote,
    apart,
    check_outcome,
    no_retry,
    random_name,
    unknown_job,
)
from clipfleet.common.versions import leaving_out, read

ROOT = "clipfleet:"
SCRIPT = (Path(__file__).parent / "ledger.lua").read_text()
JOB_ID = re.compile(r"[0-9A-Za-z-]{1,64}")  # no colon: keys lie beside each other
PAGE = 1_000
ITEMS = TypeAdapter(tuple[Item, ...])


class RedisLedger:
    """The ledger in Redis.

    Args:
        clock: unix seconds, for tests; without it Redis' own clock decides.
        unique: gives another name at every call.
    """

    def __init__(
        self,
        client: "redis.Redis",
        clock: Callable[[], float] | None = None,
        unique: Callable[[], str] = random_name,
    ) -> None:
        self._redis, self._unique = client, unique
        self._script = client.register_script(SCRIPT)
        self._clock = clock

    def create(self, new: NewJob, idempotency_key: str = "") -> Job:
        fields = (new.model_dump_json(), new.v, new.collection, new.model, new.retry_of)
        made = _text(self._run("create", new.id, *fields, idempotency_key, KEEP_IDEMPOTENCY_S))
        if made == "!gone":
            raise unknown_job(new.retry_of)
        if made.startswith("!"):
            raise no_retry(new.retry_of, made[1:])
        return self.job(made)

    def made(self, idempotency_key: str) -> Job | None:
        made = self._ask(lambda c: c.get(f"{ROOT}idempotency:{idempotency_key}"))
        (row,) = self._rows([_text(made)]) if made else ({},)
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
        key = f"{ROOT}jobs:in:{collection}" if collection else f"{ROOT}jobs"
        if states or sees:
            ids = list(islice(self._ids_where(key, states, sees), offset, offset + limit))
        else:
            ids = self._ids(key, offset, limit)
        found = []
        for row in self._rows(ids):
            with leaving_out():
                found += [_job(row)] if row else []
        return found

    def _ids(self, key: str, offset: int, limit: int) -> list[str]:
        ids = self._ask(lambda c: c.zrevrange(key, offset, offset + limit - 1))
        return [_text(one) for one in ids]

    def _ids_where(
        self, key: str, states: Collection[str], sees: Callable[[str], bool] | None
    ) -> Iterator[str]:
        """Page by page: no single long call that everybody else waits for."""
        for offset in count(0, PAGE):
            ids = self._ids(key, offset, PAGE)
            found = self._each(ids, lambda pipe, job: pipe.hmget(job, "state", "collection"))
            for job_id, (state, collection) in zip(ids, found, strict=True):
                in_state = state and (not states or _text(state) in states)
                if in_state and (sees is None or (collection and sees(_text(collection)))):
                    yield job_id
            if len(ids) < PAGE:
                return

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> list[Failure]:
        key = f"{ROOT}job:{job_id}:failures"
        rows = self._ask(lambda c: c.lrange(key, offset, offset + limit - 1))
        return [Failure.model_validate_json(row) for row in rows]

    def cancel(self, job_id: str, reason: str = "") -> Job:
        self.job(job_id)
        self._run("cancel", job_id, reason)
        return self.job(job_id)

    def remove(self, job_id: str) -> None:
        if not (JOB_ID.fullmatch(job_id) and self._run("remove", job_id)):
            raise unknown_job(job_id)

    def keep_house(self, keeper: str, seconds: float) -> bool:
        return bool(self._run("keep_house", "", keeper, seconds))

    def ended(self, seconds_ago: float, limit: int) -> list[str]:
        return [_text(one) for one in self._run("ended", "", seconds_ago, limit)]

    def active(self) -> list[str]:
        ids = self._ask(lambda c: c.smembers(f"{ROOT}jobs:active"))
        return sorted(_text(one) for one in ids)

    def lease(self, job_id: str, planner: str, seconds: float) -> PlanLease | None:
        answer = self._run("lease", job_id, planner, seconds, self._unique())
        if answer is None:
            return None
        token, cursor, planned = answer
        return PlanLease(_text(token), _text(cursor), _text(planned) == "1")

    def estimate(self, job_id: str, images: int) -> None:
        self._run("estimate", job_id, images)

    def plan(
        self, job_id: str, token: str, items: Sequence[Item], after: str, cursor: str
    ) -> str | None:
        chunk = (self._unique(), _json(items), len(items), _remote(items))
        name = self._run("plan", job_id, token, *chunk, after, cursor)
        return None if name is None else _text(name)

    def end_plan(self, job_id: str, token: str, after: str, error: str = "") -> bool:
        return bool(self._run("end_plan", job_id, token, after, error))

    def open_chunks(self, job_id: str) -> list[OpenChunk]:
        rows = self._run("open", job_id)
        chunks = [_open_chunk(*row) for row in rows]
        return sorted(chunks, key=lambda chunk: chunk.name)

    def items(self, job_id: str, chunk: str) -> tuple[Item, ...]:
        raw = self._ask(lambda c: c.hget(f"{ROOT}job:{job_id}:chunk:{chunk}", "items"))
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
        for part, attempts in apart(items, chunk):
            parts += [self._unique(), _json(part), len(part), attempts, _remote(part)]
        return bool(self._run("split", job_id, chunk.name, chunk.attempt, *parts))

    def bury(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        raw = _failure(failure)
        return bool(self._run("bury", job_id, chunk.name, chunk.attempt, raw))

    def claim(
        self, model: str, worker: str, seconds: float, max_attempts: int, *, remote: bool = False
    ) -> Claim | Unknown | None:
        versions = ",".join(map(str, VERSIONS))
        ask = (worker, seconds, self._unique(), max_attempts, versions, int(remote))
        answer = self._run("claim", "", model, *ask)
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
        counts = (len(claim.items), outcome.done, outcome.skipped, outcome.rate, RATE_WEIGHT)
        chunk = (self._unique(), _json(outcome.rest), len(outcome.rest), claim.attempt - 1)
        rest = (*chunk, _remote(outcome.rest))
        kept = (_json(outcome.kept), len(outcome.kept), _remote(outcome.kept))
        failures = [_failure(failure) for failure in outcome.failures]
        return self._held("mark", claim, *counts, *rest, *kept, *failures)

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        return self._held("release", claim, int(count_attempt))

    def _held(self, operation: str, claim: Claim, *args: str | int | float) -> bool:
        return bool(self._run(operation, claim.job_id, claim.chunk, claim.token, *args))

    def note(self, job_id: str, waiting: str) -> None:
        self._run("note", job_id, waiting)

    def _run(self, operation: str, job_id: str, *args: str | int | float) -> Any:
        clock = "" if self._clock is None else f"{self._clock():.6f}"
        return self._ask(lambda _: self._script(args=[operation, clock, job_id, *args]))

    def _rows(self, ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        return self._each(ids, lambda pipe, job: pipe.hgetall(job))

    def _each(self, ids: Sequence[str], ask: Callable[[Any, str], Any]) -> list[Any]:
        def run(client: Any) -> Any:
            pipe = client.pipeline(transaction=False)
            for job_id in ids:
                ask(pipe, f"{ROOT}job:{job_id}")
            return pipe.execute()

        rows: list[Any] = self._ask(run)
        return rows

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        with answering():
            return call(self._redis)


def _json(items: Sequence[Item]) -> str:
    return ITEMS.dump_json(tuple(items)).decode()


def _remote(items: Sequence[Item]) -> int:
    return int(any_remote(items))


def _failure(failure: Failure) -> str:
    return failure.model_dump_json(exclude_defaults=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
        new=read(NewJob, text["new"], "job"),
        state=text["state"],  # type: ignore[arg-type]  # written by the script only
        created_at=float(text["created_at"]),
        started_at=_time(text.get("started_at")),
        finished_at=_time(text.get("finished_at")),
        planned=text["planned"] == "1",
        error=text["error"],
        waiting=text["waiting"],
        retried_by=text.get("retried_by", ""),
        rate=float(text.get("rate", 0)),
        **{name: int(text[name]) for name in counts},
    )


def _time(raw: str | None) -> float | None:
    return float(raw) if raw else None
