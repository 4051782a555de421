"""kill -9, and SIGTERM, of each part in turn while a job runs: every image is in once."""

from pathlib import Path

import pytest
import stack
from chaos import work

PARTS = ("worker-ingest-1", "planner", "gateway", "milvus", "valkey", "worker-query")


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_sudden_death_of(part: str, slow: stack.Up, photos: Path) -> None:
    collection = f"kill-{part}"
    job = work.begin(slow, collection, photos)
    victim = slow.part(part)
    victim.kill()
    work.restarted(slow, part, victim.pid)
    work.require_exact(slow, job, collection)


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_orderly_restart_of(part: str, slow: stack.Up, photos: Path) -> None:
    collection = f"term-{part}"
    job = work.begin(slow, collection, photos)
    victim = slow.part(part)
    victim.terminate()
    work.restarted(slow, part, victim.pid)
    work.require_exact(slow, job, collection)
