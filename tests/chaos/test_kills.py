"""kill -9, and SIGTERM, of each part in turn while a job runs: every image is in once."""

from pathlib import Path

import pytest

from support import chaos, stack

PARTS = ("worker-ingest-1", "planner", "gateway", "milvus", "valkey", "worker-query")


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_sudden_death_of(part: str, slow: stack.Up, photos: Path) -> None:
    collection = f"kill-{part}"
    job = chaos.begin(slow, collection, photos)
    victim = slow.part(part)
    victim.kill()
    chaos.restarted(slow, part, victim.pid)
    chaos.require_exact(slow, job, collection)


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_orderly_restart_of(part: str, slow: stack.Up, photos: Path) -> None:
    collection = f"term-{part}"
    job = chaos.begin(slow, collection, photos)
    victim = slow.part(part)
    victim.terminate()
    chaos.restarted(slow, part, victim.pid)
    chaos.require_exact(slow, job, collection)
