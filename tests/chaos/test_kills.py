"""kill -9, and SIGTERM, of each part in turn while a job runs: every image is in once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import stack
from chaos import work

PARTS = ("worker-ingest-1", "planner", "gateway", "milvus", "valkey", "worker-query")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work.many_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[stack.Up]:
    with stack.up(tmp_path_factory.mktemp("kills"), tiny, **work.SLOW) as running:
        yield running


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_sudden_death_of(part: str, running: stack.Up, photos: Path) -> None:
    collection = f"kill-{part}"
    job = work.begin(running, collection, photos)
    victim = running.part(part)
    victim.kill()
    work.restarted(running, part, victim.pid)
    work.require_exact(running, job, collection)


@pytest.mark.parametrize("part", PARTS)
def test_a_job_survives_the_orderly_restart_of(part: str, running: stack.Up, photos: Path) -> None:
    collection = f"term-{part}"
    job = work.begin(running, collection, photos)
    victim = running.part(part)
    victim.terminate()
    work.restarted(running, part, victim.pid)
    work.require_exact(running, job, collection)
