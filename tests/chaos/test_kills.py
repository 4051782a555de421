"""kill -9, and SIGTERM, of each part in turn while a job runs: every image is in once."""

from pathlib import Path

import pytest

from support import chaos

PARTS = ("worker-ingest-1", "planner", "gateway", "milvus", "valkey", "worker-query")


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_sudden_death_of(part: str, slow: chaos.Up, photos: Path) -> None:
    collection = f"kill-{part}"
    victim = slow.part(part)
    with chaos.held_job(slow, collection, photos) as job:
        victim.kill()
        chaos.restarted(slow, part, victim.pid)
    chaos.require_exact(slow, job, collection)


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_orderly_restart_of(part: str, slow: chaos.Up, photos: Path) -> None:
    collection = f"term-{part}"
    victim = slow.part(part)
    with chaos.held_job(slow, collection, photos) as job:
        victim.terminate()
    chaos.restarted(slow, part, victim.pid)  # a worker ends when it is through with its batch
    chaos.require_exact(slow, job, collection)
