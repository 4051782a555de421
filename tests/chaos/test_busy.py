"""A worker that computes for longer than its lease answers pings and holds its chunk."""

import socket
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from clipfleet.common.ledger import OpenChunk
from clipfleet.common.queue.broker import make_celery
from clipfleet.common.settings import Settings
from support import chaos, services

LEASE_S = float(chaos.SETTINGS["CLIPFLEET_LEASE_S"])
NAME = f"worker-ingest-1@{socket.gethostname()}"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One chunk."""
    return chaos.many_photos(tmp_path / "photos", chaos.CHUNK)


def begin(slow_stack: chaos.Up, collection: str, photos: Path) -> str:
    """A job whose only chunk is in the hands of a worker at the gate."""
    with slow_stack.client() as client, chaos.ledger(slow_stack) as ledger:
        client.create_collection(collection)
        job_id = client.index(collection, photos).id
        slow_stack.gate.wait()
        services.eventually(lambda: ledger.job(job_id).planned, 30, "the end of planning")
    return job_id


def only_chunk(slow_stack: chaos.Up, job_id: str) -> OpenChunk:
    with chaos.ledger(slow_stack) as ledger:
        (chunk,) = ledger.open_chunks(job_id)
    return chunk


def test_a_busy_worker_answers_every_ping_and_keeps_its_lease(
    slow_stack: chaos.Up, photos: Path
) -> None:
    with slow_stack.gate.closed(chaos.CHUNK // 2, "spin"):
        job = begin(slow_stack, "busy", photos)
        answers: list[object] = []
        seen: list[OpenChunk] = []
        over = time.monotonic() + 1.5 * LEASE_S
        with closing(make_celery(Settings(redis_url=chaos.redis_url(slow_stack)))) as app:
            while time.monotonic() < over or len(answers) < 10:
                answers.append(app.control.ping(destination=[NAME], timeout=30))
                seen.append(only_chunk(slow_stack, job))
                time.sleep(0.1)
    assert all(answer == [{NAME: {"ok": "pong"}}] for answer in answers)
    assert len({chunk.name for chunk in seen}) == 1
    assert {(chunk.attempt, chunk.leased, chunk.expired) for chunk in seen} == {(1, True, False)}
    chaos.require_exact(slow_stack, job, "busy", chaos.CHUNK)


def test_a_worker_told_to_end_hands_its_chunk_back_uncounted(
    slow_stack: chaos.Up, photos: Path
) -> None:
    worker, supervisor = slow_stack.part("worker-ingest-1"), psutil.Process(slow_stack.process.pid)
    shutdowns = count_shutdowns(slow_stack)
    with slow_stack.gate.closed():
        job = begin(slow_stack, "told", photos)
        assert only_chunk(slow_stack, job).attempt == 1
        with chaos.stopped(supervisor):  # nobody starts the worker anew
            worker.terminate()
            services.eventually(lambda: count_shutdowns(slow_stack) > shutdowns, 60, "the signal")

            def has_ended() -> bool:
                """It may end after each batch of images."""
                if slow_stack.gate.held():
                    slow_stack.gate.hold(after=1)
                return not chaos.still_running([worker])

            services.eventually(has_ended, 60, "the worker's end")
            handed_back = only_chunk(slow_stack, job)
            assert (handed_back.attempt, handed_back.leased) == (0, False)
    chaos.restarted(slow_stack, "worker-ingest-1", worker.pid)
    chaos.require_exact(slow_stack, job, "told", chaos.CHUNK)


def count_shutdowns(slow_stack: chaos.Up) -> int:
    return slow_stack.log("worker-ingest-1").count("Warm shutdown")
