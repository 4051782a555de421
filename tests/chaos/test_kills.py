"""kill -9, and SIGTERM, of each part in turn while a job runs: every image is in once."""

from pathlib import Path

import pytest

from support import chaos

PARTS = ("worker-ingest-1", "planner", "gateway", "milvus", "valkey", "worker-query")


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_sudden_death_of(part: str, slow_stack: chaos.Up, photos: Path) -> None:
    collection = f"kill-{part}"
    victim = slow_stack.part(part)
    with chaos.held_job(slow_stack, collection, photos) as job:
        victim.kill()
        chaos.restarted(slow_stack, part, victim.pid)
    chaos.require_exact(slow_stack, job, collection)


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_orderly_restart_of(
    part: str, slow_stack: chaos.Up, photos: Path
) -> None:
    collection = f"term-{part}"
    victim = slow_stack.part(part)
    with chaos.held_job(slow_stack, collection, photos) as job:
        victim.terminate()
    chaos.restarted(slow_stack, part, victim.pid)  # a worker ends when it is through with its batch
    chaos.require_exact(slow_stack, job, collection)
