"""The ledger on Redis (not Redis Cluster: the script names its keys itself)."""

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import redis
from pydantic import TypeAdapter

from clipfleet.common.connection import answering
from clipfleet.common.ledger import (
    KEEP_IDEMPOTENCY_S,
    Claim,
    Failure,
    Item,
    Job,
    NewJob,
    OpenChunk,
    Outcome,
    PlanLease,
    Refusal,
    apart,
    check_outcome,
    no_retry,
    unknown_job,
)
from clipfleet.common.versions import leaving_out, read

ROOT = "clipfleet:"
SCRIPT = (Path(__file__).parent / "ledger.lua").read_text()
JOB_ID = re.compile(r"[0-9A-Za-z-]{1,64}")  # no colon: keys lie beside each other
PAGE = 1_000
ITEMS = TypeAdapter(tuple[Item, ...])


class RedisLedger:
    """`clock`: unix seconds, for tests; left out, Redis' own clock decides."""

    def __init__(self, client: "redis.Redis", clock: Callable[[], float] | None = None) -> None:
        self._redis = client
        self._script = client.register_script(SCRIPT)
        self._clock = clock

    def create(self, new: NewJob, idempotency_key: str = "") -> Job:
        told = (new.model_dump_json(), new.collection, new.retry_of)
        made = _text(self._run("create", new.id, *told, idempotency_key, KEEP_IDEMPOTENCY_S))
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
        answer = self._run("lease", job_id, planner, seconds)
        if answer is None:
            return None
        token, cursor, planned = answer
        return PlanLease(int(token), _text(cursor), _text(planned) == "1")

    def estimate(self, job_id: str, images: int) -> None:
        self._run("estimate", job_id, images)

    def plan(
        self, job_id: str, token: int, items: Sequence[Item], after: str, cursor: str
    ) -> int | None:
        no = self._run("plan", job_id, token, _json(items), len(items), after, cursor)
        return None if no is None else int(no)

    def end_plan(self, job_id: str, token: int, error: str = "") -> bool:
        return bool(self._run("end_plan", job_id, token, error))

    def open_chunks(self, job_id: str) -> list[OpenChunk]:
        rows = self._run("open", job_id)
        chunks = [_open_chunk(*row) for row in rows]
        return sorted(chunks, key=lambda chunk: chunk.no)

    def items(self, job_id: str, no: int) -> tuple[Item, ...]:
        raw = self._ask(lambda c: c.hget(f"{ROOT}job:{job_id}:chunk:{no}", "items"))
        return ITEMS.validate_json(raw) if raw else ()

    def sent(self, job_id: str, no: int) -> None:
        self._run("sent", job_id, no)

    def split(self, job_id: str, chunk: OpenChunk) -> bool:
        items = self.items(job_id, chunk.no)
        if len(items) < 2:
            return False
        (left, tried), (right, too) = apart(items, chunk)
        parts = (_json(left), len(left), tried, _json(right), len(right), too)
        return bool(self._run("split", job_id, chunk.no, chunk.attempt, *parts))

    def bury(self, job_id: str, chunk: OpenChunk, failure: Failure) -> bool:
        raw = _failure(failure)
        return bool(self._run("bury", job_id, chunk.no, chunk.attempt, raw))

    def claim(self, job_id: str, no: int, worker: str, seconds: float) -> Claim | Refusal:
        answer = self._run("claim", job_id, no, worker, seconds, secrets.token_hex(8))
        if not isinstance(answer, list):
            return Refusal(_text(answer))
        token, attempt, items = answer
        return Claim(job_id, no, int(token), int(attempt), ITEMS.validate_json(items))

    def renew(self, claim: Claim, seconds: float) -> bool:
        return bool(self._run("renew", claim.job_id, claim.no, claim.token, seconds))

    def suspect(self, claim: Claim, index: int | None) -> bool:
        place = "" if index is None else index
        return bool(self._run("suspect", claim.job_id, claim.no, claim.token, place))

    def mark(self, claim: Claim, outcome: Outcome) -> bool:
        check_outcome(claim, outcome)
        failures = [_failure(failure) for failure in outcome.failures]
        counts = (outcome.done, outcome.skipped)
        return bool(self._run("mark", claim.job_id, claim.no, claim.token, *counts, *failures))

    def release(self, claim: Claim, *, count_attempt: bool) -> bool:
        counted = int(count_attempt)
        return bool(self._run("release", claim.job_id, claim.no, claim.token, counted))

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


def _failure(failure: Failure) -> str:
    return failure.model_dump_json(exclude_defaults=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _open_chunk(
    no: Any, size: Any, attempt: Any, leased: Any, expired: Any, waited: Any, suspect: Any
) -> OpenChunk:
    return OpenChunk(
        no=int(no),
        size=int(size),
        attempt=int(attempt),
        leased=bool(leased),
        expired=bool(leased) and bool(expired),
        waited_s=float(waited),
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
        **{name: int(text[name]) for name in counts},
    )


def _time(raw: str | None) -> float | None:
    return float(raw) if raw else None
