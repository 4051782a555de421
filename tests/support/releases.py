"""Golden files with what a release writes.

`python -m support.releases 0.2`, run in tests/, writes the files of release 0.2. Files of published
releases are never written again.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from pydantic import BaseModel

from clipfleet.common.collection import Collection
from clipfleet.common.http.schemas import MatchOut
from clipfleet.common.imaging.preprocess import Preprocess
from clipfleet.common.ledger import Claim, Failure, Item, NewJob, Outcome
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.unfinished import RedisUnfinished
from clipfleet.common.queue.fleet import WorkerCard
from clipfleet.common.queue.messages import (
    Answer,
    BatchReply,
    IngestNudge,
    Query,
    QueryBatch,
    Search,
    Term,
)
from clipfleet.common.store import Record
from support import services

GOLDEN = Path(__file__).parent / "golden"
MODEL = "openai/clip-vit-base-patch32"
NOON = 1_700_000_000.0

COLLECTION = Collection(
    name="photos", generation="5f1c0a9be012", metric="cosine", model=MODEL, dim=4,
    fields={"year": "int", "indoors": "bool", "place": "string", "size": "float"}, created_at=NOON,
)  # fmt: skip
RECORD = Record(
    pk="0f343b0931126a20f133d67c2b018a3b", id="rome/1.jpg", namespace="default",
    uri="/photos/rome/1.jpg", embedding=[0.5, 0.5, 0.5, 0.5], content_hash="c" * 32,  # type: ignore[arg-type]
    job_id="74e1c0d8aa61f2b3", label="rome", bytes=1_234, width=640, height=480,
    indexed_at=1_700_000_000_000, metadata={"year": 2023, "indoors": False, "by": {"name": "Ada"}},
)  # fmt: skip
ITEMS = tuple(
    Item(
        id=f"rome/{n}.jpg", uri=f"/photos/rome/{n}.jpg", read=f"file:/photos/rome/{n}.jpg",
        label="rome", metadata={"year": 2020 + n},
    )
    for n in range(3)
)  # fmt: skip
FAILURE = Failure.of(ITEMS[1], "decode", "not an image", 1)
JOB = NewJob(
    id="74e1c0d8aa61f2b3", collection="photos", generation=COLLECTION.generation, model=MODEL,
    namespace="default", on_existing="replace",
    source={"type": "folder", "path": "/photos", "recursive": True, "label_from_folder": True},
)  # fmt: skip
SEARCH = Search(
    collection=COLLECTION, namespace="default", top_k=10, filter={"year": {"$gt": 2020}},
    min_score=0.1, group_by="label", collapse=0.97, include_values=True,
)  # fmt: skip
NOT_THIS = Term(kind="id", value="rome/1.jpg", weight=-0.5)
QUERIES = (
    Query(terms=(Term(kind="text", value="a dog"), NOT_THIS), search=SEARCH),
    Query.of(Term(kind="vector", value=(0.1, 0.2, 0.3, 0.4)), SEARCH),
    Query.of(Term(kind="image", value="9a8b7c6d")),
)  # fmt: skip
MATCH = MatchOut(
    id="rome/1.jpg", score=0.75, uri="/photos/rome/1.jpg", label="rome", metadata={"year": 2021},
    values=[0.5, 0.5, 0.5, 0.5], duplicates=1,
)  # fmt: skip

MESSAGES: Mapping[str, BaseModel] = {
    "collection": COLLECTION,
    "job": JOB,
    "item": ITEMS[0],
    "failure": FAILURE,
    "ingest-nudge": IngestNudge(model=MODEL),
    "query-batch": QueryBatch(
        model=MODEL, batch_id="b1", reply_to="clipfleet:replies:g1", queries=QUERIES,
        deadlines=(NOON, NOON + 1, NOON + 2),
    ),
    "batch-reply": BatchReply(
        batch_id="b1",
        answers=(
            Answer(matches=(MATCH,)),
            Answer(embedding=(0.5, 0.5)),
            Answer(error="not-found", detail="there is no image 'x' in the collection"),
        ),
    ),
    "worker-card": WorkerCard(
        id="host-1-abc", model=MODEL, dim=4, lanes=("ingest", "query"), device="cuda",
        preprocess=Preprocess(shortest=224, height=224, width=224), rate=12.5, started_at=NOON,
        progress_at=NOON + 5,
    ),
}  # fmt: skip


def keep(client: "redis.Redis") -> None:
    """Everything that stays in Redis: a job halfway, with a chunk done, one waiting, one failure;
    its end not planned yet. Another that waits to begin, and an upload that is no job yet."""
    RedisCatalogue(client).add(COLLECTION)
    ledger = RedisLedger(client, lambda: NOON)
    ledger.create(JOB, "a-key")
    lease = ledger.lease(JOB.id, "planner-1", 10)
    assert lease
    ledger.estimate(JOB.id, 100)
    for after, upto in (("", "1"), ("1", "2")):
        assert ledger.plan(JOB.id, lease.token, ITEMS, after, upto)
    claim = ledger.claim(MODEL, "worker-1", 15, 2)
    assert isinstance(claim, Claim)
    ledger.mark(claim, Outcome(done=1, skipped=1, failures=(FAILURE,)))
    ledger.set_waiting_reason(JOB.id, "the blob store cannot be written: disk full")
    ledger.create(JOB.model_copy(update={"id": "b2"}))
    RedisUnfinished(client, lambda: NOON).begin("c3")


def dump(client: "redis.Redis") -> dict[str, Any]:
    """Every key with its type and value. A sorted set has its scores."""
    reads: dict[bytes, Any] = {
        b"string": lambda key: client.get(key),
        b"hash": lambda key: dict(sorted(client.hgetall(key).items())),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": lambda key: sorted(client.smembers(key)),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    keys: Any = sorted(client.scan_iter())
    kinds: Any = {key: client.type(key) for key in keys}
    rows = {key: {"type": kinds[key], "value": reads[kinds[key]](key)} for key in keys}
    plain: dict[str, Any] = _text(rows)
    return plain


def load(client: "redis.Redis", rows: dict[str, Any]) -> None:
    for key, row in rows.items():
        value = row["value"]
        match row["type"]:
            case "string":
                client.set(key, value)
            case "hash":
                client.hset(key, mapping=value)
            case "list":
                client.rpush(key, *value)
            case "set":
                client.sadd(key, *value)
            case "zset":
                client.zadd(key, dict(value))


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_text(key): _text(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_text(inner) for inner in value]
    return value


def main(release: str) -> None:
    from clipfleet.common.store.rows import to_row

    folder = GOLDEN / release
    folder.mkdir(parents=True)
    documents: dict[str, Any] = {
        name: message.model_dump(mode="json") for name, message in MESSAGES.items()
    }
    documents["row"] = to_row(COLLECTION, RECORD)
    with tempfile.TemporaryDirectory() as where, services.valkey(Path(where)) as url:
        client = redis.Redis.from_url(url)
        keep(client)
        documents["redis"] = dump(client)
        client.close()
    for name, document in documents.items():
        text = json.dumps(document, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main(sys.argv[1])
