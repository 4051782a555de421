"""Disturbs jobs at a known point of their work, and checks what must be true at their end."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from clipfleet import Client
from clipfleet.common.ledger.redis import RedisLedger
from support import services, stack
from support.gate import Gate
from support.models import data

# The smallest chunks, in several batches each; nobody waits for long for a lease or an answer.
SETTINGS = {
    "CLIPFLEET_CHUNK_S": "0.001",
    "CLIPFLEET_EMBED_BATCH": "2",
    "CLIPFLEET_LEASE_S": "3",
    "CLIPFLEET_PLAN_LEASE_S": "3",
    "CLIPFLEET_CALL_TIMEOUT_S": "2",
}
# All chunks are small from the first on, and on a busy machine no part waits for another.
CONSTANTS = {
    "clipfleet.workers.planner.chunk_size:FIRST_CHUNK": 8,
    "clipfleet.embedded.supervisor:NICENESS": 0,
}
CHUNK = 8  # images
PHOTOS = 96
HELD_AFTER = 44  # of them: five chunks are done, and half of the sixth
END_S = 240.0


@dataclass
class Up(stack.Up):
    """A stack with a hash as the model, whose ingest workers can be held and broken."""

    gate: Gate = field(kw_only=True)


@contextmanager
def up(
    folder: Path, *more: str, constants: Mapping[str, float] = CONSTANTS, **env: str
) -> Iterator[Up]:
    gate = Gate(folder.with_name(f"{folder.name}-faults"))
    settings = {**SETTINGS, **gate.environment(**constants), **env}
    with stack.up(folder, stack.HASH_MODEL, *more, **settings) as running:
        yield Up(**vars(running), gate=gate)


def many_photos(folder: Path, count: int = PHOTOS) -> Path:
    """A folder of `count` photos with different names. They are links to a few files."""
    folder.mkdir(parents=True, exist_ok=True)
    source = sorted((data("flickr8k") / "images").glob("*.jpg"))
    for number in range(count):
        photo = source[number % len(source)]
        (folder / f"{number:05d}-{photo.name}").symlink_to(photo)
    return folder


@contextmanager
def held_job(up: Up, collection: str, photos: Path) -> Iterator[str]:
    """Yield the id of a job that has done a part of its work.

    The job is held until the block ends or opens the gate.
    """
    with up.gate.closed(HELD_AFTER):
        with up.client() as client:
            client.create_collection(collection)
            job_id = client.index(collection, photos).id
            up.gate.wait()
            services.eventually(lambda: client.job(job_id).done > 0, 60, "the first chunk's end")
            assert client.job(job_id).finished_at is None
        yield job_id


def require_exact(up: Up, job_id: str, collection: str, count: int = PHOTOS) -> None:
    """Require that the job and the collection count every image once, and that a search works."""
    with up.client() as client:
        job = stack.finished(client, job_id, END_S)
        counts = (job.state, job.total, job.done, job.skipped, job.failed)
        assert counts == ("succeeded", count, count, 0, 0), job
        services.eventually(up.ready, 90, "a ready stack")
        # What /readyz says may be a second old.
        (held,) = services.eventually(
            lambda: (client.collection(collection).count,), 90, "the store's answer"
        )
        assert held == count, (held, count)
        result = client.search(collection, text="a dog runs", top_k=5)
        assert len(result.matches) == 5


def restarted(up: stack.Up, part: str, old: int) -> psutil.Process:
    """Wait for the process that replaces the one with the process id `old`."""

    def successor() -> psutil.Process | None:
        process = up.part(part)
        return process if process.pid != old else None

    process: psutil.Process = services.eventually(successor, 120, f"the restart of {part}")
    return process


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Stop a process with SIGSTOP until the end of the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def still_running(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and not _is_zombie(each)]


def _is_zombie(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_ZOMBIE)


def says(client: Client, job_id: str, why: str) -> bool:
    """Whether the job gives this as its reason to wait."""
    return why in (client.job(job_id).waiting or "")


@contextmanager
def connection(up: stack.Up) -> Iterator["redis.Redis"]:
    with closing(redis.Redis.from_url(redis_url(up))) as client:
        yield client


@contextmanager
def ledger(up: stack.Up) -> Iterator[RedisLedger]:
    with connection(up) as client:
        yield RedisLedger(client)


class Log:
    """The append-only file of a stack's Valkey, and its size at each moment."""

    def __init__(self, up: stack.Up) -> None:
        self._up, self._folder = up, up.folder / "valkey" / "appendonlydir"
        self._seen: deque[tuple[float, Path, int]] = deque(maxlen=1_000)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Log":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            with suppress(OSError):
                last = self._last()
                self._seen.append((time.monotonic(), last, last.stat().st_size))

    def _last(self) -> Path:
        return max(self._folder.glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)

    def forget(self, seconds: float) -> int:
        """Kill Valkey and remove what it wrote in its last seconds, before it is started again.

        Returns:
            The number of bytes that were removed.
        """
        valkey = services.eventually(lambda: self._up.part("valkey"), 60, "Valkey")
        with stopped(psutil.Process(self._up.process.pid)):
            valkey.send_signal(signal.SIGKILL)
            services.eventually(lambda: not still_running([valkey]), 30, "the death of Valkey")
            last, until = self._last(), time.monotonic() - seconds
            size = last.stat().st_size
            kept = [length for at, path, length in list(self._seen) if path == last and at <= until]
            os.truncate(last, kept[-1] if kept else 0)
        return size - (kept[-1] if kept else 0)


def redis_url(up: stack.Up) -> str:
    """The address of the stack's Valkey, with the password."""
    lines = (up.folder / "valkey" / "valkey.conf").read_text().splitlines()
    options = dict(line.split(" ", 1) for line in lines)
    return f"redis://:{options['requirepass']}@127.0.0.1:{options['port']}/0"


def option(process: psutil.Process, name: str) -> str:
    """The value of an option on the command line of a process."""
    words = process.cmdline()
    return words[words.index(name) + 1]
