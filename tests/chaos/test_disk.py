"""Disks that are full: the job says why it waits, nothing is lost, and it continues."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support import chaos, services

DISKS = {".": 64, "blobs": 64, "milvus": 128, "valkey": 64}  # megabytes
BLOCK = 4_096


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk of a test's own takes the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Keep the disk full, also when another process frees some bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as out:
        try:
            fill(out.fileno())
            yield
        finally:
            filler.unlink()


def fill(file: int) -> None:
    with suppress(OSError):
        while os.write(file, bytes(BLOCK)):
            pass


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chaos.Up]:
    folder = tmp_path_factory.mktemp("disks")
    with ExitStack() as disks:
        for name, megabytes in DISKS.items():
            disks.enter_context(small_disk(folder / name, megabytes))
        with chaos.up(folder) as up:
            yield up


def killed(up: chaos.Up, part: str) -> None:
    """Kill a part, so that it reads again what it wrote on the full disk."""
    process = up.part(part)
    process.kill()
    chaos.restarted(up, part, process.pid)


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        ("blobs", "the blob store cannot be written: No space left on device"),
        ("milvus", "the disk of the vector store is full"),
        ("valkey", "Redis does not accept writes at the moment"),
    ],
)
def test_a_job_on_a_full_disk_says_so_waits_and_goes_on(
    running: chaos.Up, photos: Path, disk: str, why: str
) -> None:
    collection = f"on-{disk}"
    with (
        chaos.held_job(running, collection, photos) as job,
        full(running.folder / disk),
        running.client() as client,
    ):
        running.gate.open()
        services.eventually(lambda: chaos.says(client, job, why), 60, "a reason")
        tries = count_tries(running, disk, why)
        services.eventually(lambda: count_tries(running, disk, why) > tries + 1, 60, "more tries")
        assert client.job(job).finished_at is None
    chaos.require_exact(running, job, collection)
    if disk != "blobs":
        killed(running, disk)
        chaos.require_exact(running, job, collection)


def count_tries(up: chaos.Up, disk: str, why: str) -> int:
    """Return how often Valkey refused a write of any part, or the busy worker waited for `why`."""
    if disk != "valkey":
        return up.log("worker-ingest-1").count(f"waiting: {why}")
    with chaos.connection(up) as client:
        errors: Any = client.info("errorstats")
    return sum(int(error["count"]) for name, error in errors.items() if "MISCONF" in name)


def test_workers_are_started_anew_though_nothing_can_be_logged(
    running: chaos.Up, photos: Path
) -> None:
    with chaos.held_job(running, "unlogged", photos) as job, full(running.folder):
        killed(running, "worker-ingest-1")
        running.gate.open()
        chaos.require_exact(running, job, "unlogged")
