"""Jobs in a ledger, brought to the state that a test begins with."""

from dataclasses import dataclass
from typing import Any

import redis

from clipfleet.common.ledger import Claim, Failure, Item, Ledger, NewJob, Outcome
from clipfleet.common.ledger.redis import _text

LEASE_S = 10.0


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def a_job(job_id: str = "j", collection: str = "photos", retry_of: str = "") -> NewJob:
    return NewJob(
        id=job_id,
        collection=collection,
        generation="g1",
        model="m",
        namespace="default",
        source={"type": "folder", "path": "/p"},
        retry_of=retry_of,
    )


def traces(client: "redis.Redis", job_id: str) -> list[str]:
    """Every key in Redis that is named for a job or holds its id."""
    found = []
    for raw in client.scan_iter():
        key, kind = _text(raw), _text(client.type(raw))
        members: dict[str, Any] = {
            "zset": lambda key=key: client.zrange(key, 0, -1),
            "set": lambda key=key: client.smembers(key),
            "hash": lambda key=key: client.hvals(key),
            "string": lambda key=key: [client.get(key)],
            "list": lambda key=key: client.lrange(key, 0, -1),
        }
        if job_id in key.split(":") or job_id.encode() in members[kind]():
            found.append(key)
    return found


def items(*ids: str) -> list[Item]:
    return [Item(id=one, uri=one, read=f"file:{one}", label="é") for one in ids]


def planned(ledger: Ledger, *chunks: tuple[str, ...]) -> list[int]:
    """A running job `j` whose planning is over, with these chunks."""
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    ends = ["", *(chunk[-1] for chunk in chunks)]
    numbers = [
        ledger.plan("j", lease.token, items(*chunk), after, chunk[-1])
        for after, chunk in zip(ends, chunks, strict=False)
    ]
    assert ledger.end_plan("j", lease.token)
    return [no for no in numbers if no is not None]


def claimed(ledger: Ledger, no: int, worker: str = "w") -> Claim:
    claim = ledger.claim("j", no, worker, LEASE_S)
    assert isinstance(claim, Claim)
    return claim


def failure(image_id: str) -> Failure:
    return Failure(id=image_id, uri=image_id, reason="broken", stage="decode")


def ended(ledger: Ledger, job_id: str = "j") -> None:
    """A job of two images, one of which failed."""
    ledger.create(a_job(job_id))
    lease = ledger.lease(job_id, "p", 30)
    assert lease
    no = ledger.plan(job_id, lease.token, items("a", "b"), "", "b")
    ledger.end_plan(job_id, lease.token)
    claim = ledger.claim(job_id, no or 0, "w", LEASE_S)
    assert isinstance(claim, Claim)
    ledger.mark(claim, Outcome(done=1, failures=(failure("b"),)))
