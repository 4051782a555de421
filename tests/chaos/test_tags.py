"""kill -9 of parts while images are tagged: each image has its tags, and is counted once."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger.redis import RedisLedger
from support import chaos, services, stack

ROWS, WORDS = 6_000, 10_000  # three chunks, and some seconds of work on each


@pytest.mark.parametrize("part", ["worker-ingest-1", "planner", "milvus"])
def test_tags_survive_the_sudden_death_of(part: str, slow_stack: chaos.Up) -> None:
    collection = f"tags-{part}"
    words = [f"thing {n}" for n in range(WORDS)]
    with slow_stack.client() as client, chaos.connection(slow_stack) as connection:
        dim = client.create_collection(collection).dim
        labels = HashEmbedder(dim).embed_texts([f"a {word}" for word in words[:10]])
        client.upsert(
            collection,
            [{"id": f"{n}", "values": labels[n % 10].astype(np.float32)} for n in range(ROWS)],
        )
        ledger, tag = RedisLedger(connection), partial(client.tag, collection, words)
        job = tag(template="a {}", min_confidence=0.8)
        victim = slow_stack.part(part)
        services.eventually(
            lambda: any(chunk.leased for chunk in ledger.open_chunks(job.id)), 60, "a claim"
        )
        victim.kill()
        chaos.restarted(slow_stack, part, victim.pid)
        ended = stack.finished(client, job.id, chaos.END_S)
        counted = (ended.state, ended.total, ended.done + ended.skipped, ended.failed)
        assert counted == ("succeeded", ROWS, ROWS, 0), ended
        for n in range(10):
            where: dict[str, Any] = {"tags": {"$contains": f"thing {n}"}}
            assert client.count(collection, filter=where) == ROWS / 10
        again = tag(template="a {}", min_confidence=0.8, wait=True)
        assert (again.done, again.skipped) == (0, ROWS)
