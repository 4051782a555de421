"""Work long enough to be disturbed, and what must be true when it is over."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from clipfleet import Client
from support import services, stack
from support.killer.sitecustomize import BREAKS
from support.models import data

# One image at a time and short chunks: the work takes a while, and is cut often.
SLOW = {
    "CLIPFLEET_DECODE_THREADS": "1",
    "CLIPFLEET_EMBED_BATCH": "1",
    "CLIPFLEET_CHUNK_S": "0.25",
    "CLIPFLEET_LEASE_S": "5",
    "CLIPFLEET_FETCH__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    "CLIPFLEET_FETCH__READ_S": "600",
}
KILLER = Path(__file__).parent / "killer"
PHOTOS = 500
BROKEN = "the-device-is-broken"
END_S = 240.0


def many_photos(folder: Path, count: int = PHOTOS) -> Path:
    """`count` photos under names of their own; links, since only the names need to differ."""
    folder.mkdir(parents=True, exist_ok=True)
    source = sorted((data("flickr8k") / "images").glob("*.jpg"))
    for number in range(count):
        photo = source[number % len(source)]
        (folder / f"{number:05d}-{photo.name}").symlink_to(photo)
    return folder


def begin(up: stack.Up, collection: str, photos: Path) -> str:
    """A job that has done some of its work, and not all; its id."""
    with up.client() as client:
        client.create_collection(collection)
        job = client.index(photos, collection)
        services.eventually(lambda: client.job(job.id).done > 0, 60, "the first images")
        assert client.job(job.id).finished_at is None, "the job was too short to be disturbed"
    return job.id


def require_exact(up: stack.Up, job_id: str, collection: str, count: int = PHOTOS) -> None:
    """Every image once: in the job's counts and in the collection; and it can be searched."""
    with up.client() as client:
        job = stack.finished(client, job_id, END_S)
        counts = (job.state, job.total, job.done, job.skipped, job.failed)
        assert counts == ("succeeded", count, count, 0, 0), job
        services.eventually(up_and_ready(up), 90, "a ready stack")
        assert client.collection(collection).count == count
        found = client.search(collection, text="a dog runs", top_k=5)
        assert len(found.matches) == 5


def up_and_ready(up: stack.Up) -> Any:
    def ready() -> bool:
        with up.http() as http:
            return http.get("/readyz").status_code == 200

    return ready


def restarted(up: stack.Up, part: str, old: int) -> psutil.Process:
    """The process that took the place of the one with the number `old`."""

    def found() -> psutil.Process | None:
        process = up.part(part)
        return process if process.pid != old else None

    process: psutil.Process = services.eventually(found, 60, f"the restart of {part}")
    return process


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP: alive for the kernel, silent for everyone else; SIGCONT at the end."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def still_running(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def says(client: Client, job_id: str, why: str) -> bool:
    """Whether the job gives this as its reason to wait."""
    return why in (client.job(job_id).waiting or "")


def faults(folder: Path) -> dict[str, str]:
    """The environment of workers that can be broken: `breaking`."""
    path = os.pathsep.join([str(KILLER), *python_path()])
    return {"PYTHONPATH": path, BREAKS: str(folder / BROKEN)}


@contextmanager
def breaking(up: stack.Up) -> Iterator[None]:
    """The device of its workers is broken for so long."""
    broken = up.folder / BROKEN
    broken.touch()
    try:
        yield
    finally:
        broken.unlink()


def wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def redis_url(up: stack.Up) -> str:
    """The address of the Valkey that the stack brought, with its password."""
    lines = (up.folder / "valkey" / "valkey.conf").read_text().splitlines()
    told = dict(line.split(" ", 1) for line in lines)
    return f"redis://:{told['requirepass']}@127.0.0.1:{told['port']}/0"


def option(process: psutil.Process, name: str) -> str:
    """What follows an option on a process's command line."""
    words = process.cmdline()
    return words[words.index(name) + 1]


def python_path() -> list[str]:
    return [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
