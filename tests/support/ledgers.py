"""Brings jobs of a ledger to the state that a test begins with."""

from dataclasses import dataclass
from typing import Any

import redis

from clipfleet.common.ledger import (
    Claim,
    Failure,
    Item,
    JobRoom,
    Ledger,
    NewJob,
    Outcome,
    Unknown,
)
from clipfleet.common.ledger.redis import _text

MODEL = "m"
LEASE_S = 10.0
MAX_ATTEMPTS = 3


@dataclass
class Names:
    """Gives unique names, in the same sequence in every test."""

    count: int = 0

    def __call__(self) -> str:
        self.count += 1
        return f"{self.count:016x}"


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def a_job(job_id: str = "j", collection: str = "photos", retry_of: str = "") -> NewJob:
    return NewJob(
        id=job_id,
        collection=collection,
        generation="g1",
        model=MODEL,
        namespace="default",
        source={"type": "folder", "path": "/p"},
        retry_of=retry_of,
    )


def traces(client: "redis.Redis", job_id: str) -> list[str]:
    """Redis keys with the id of a job in their name or value, except `retry_of` of a retry."""
    keys = []
    for raw in client.scan_iter():
        key, kind = _text(raw), _text(client.type(raw))
        members: dict[str, Any] = {
            "zset": lambda key=key: client.zrange(key, 0, -1),
            "set": lambda key=key: client.smembers(key),
            "hash": lambda key=key: [
                value for name, value in client.hgetall(key).items() if name != b"retry_of"
            ],
            "string": lambda key=key: [client.get(key)],
            "list": lambda key=key: client.lrange(key, 0, -1),
            "stream": lambda key=key: _values(client.xrange(key)),
        }
        if job_id in key.split(":") or job_id.encode() in members[kind]():
            keys.append(key)
    return keys


def _values(entries: Any) -> list[bytes]:
    return [value for _, fields in entries for value in fields.values()]


Keys = dict[bytes, tuple[int, bytes]]


def dumped(client: "redis.Redis") -> Keys:
    """Every key with its time to live and its content."""
    keys: Any = client.scan_iter()
    return {key: (max(0, int(client.pttl(key))), client.dump(key)) for key in keys}  # type: ignore[misc]


def restore(client: "redis.Redis", keys: Keys) -> None:
    """Replace the data of Redis with dumped keys, so that later writes are lost."""
    client.flushall()
    for key, (ttl, value) in keys.items():
        client.restore(key, ttl, value)


def items(*ids: str, place: str = "file") -> list[Item]:
    return [Item(id=name, uri=name, read=f"{place}:{name}", label="é") for name in ids]


def planned(
    ledger: Ledger, *chunks: tuple[str, ...], job: str = "j", key: str = "", is_low: bool = False
) -> list[str]:
    """Create a running job that is completely planned, and return the names of its chunks."""
    new = a_job(job).model_copy(update={"is_low": is_low})
    ledger.create(new, room=JobRoom(key=key))
    lease = ledger.lease(job, "p", 30)
    assert lease
    ends = ["", *(chunk[-1] for chunk in chunks)]
    names = [
        ledger.plan(job, lease.token, items(*chunk), after, chunk[-1])
        for after, chunk in zip(ends, chunks, strict=False)
    ]
    assert ledger.finish_planning(job, lease.token, ends[-1])
    return [name for name in names if name is not None]


def next_claim(ledger: Ledger, worker: str = "w") -> Claim | None:
    claim = ledger.claim(MODEL, worker, LEASE_S, MAX_ATTEMPTS)
    assert not isinstance(claim, Unknown)
    return claim


def claimed(ledger: Ledger, worker: str = "w") -> Claim:
    claim = next_claim(ledger, worker)
    assert claim is not None
    return claim


def requeue(ledger: Ledger, job: str = "j") -> int:
    """Requeue chunks with an expired lease, as a planner does, and return their number."""
    expired = [chunk for chunk in ledger.open_chunks(job) if chunk.expired]
    return sum(ledger.requeue(job, chunk) for chunk in expired)


def failure(image_id: str) -> Failure:
    return Failure(id=image_id, uri=image_id, reason="broken", stage="decode")


def ended(ledger: Ledger, job_id: str = "j") -> None:
    """Create a job of two images that has ended. One image failed."""
    planned(ledger, ("a", "b"), job=job_id)
    claim = claimed(ledger)
    assert claim.job_id == job_id
    ledger.mark(claim, Outcome(done=1, failures=(failure("b"),)))
