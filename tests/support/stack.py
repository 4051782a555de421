"""Runs `clipfleet up` as a process, for tests that need the whole service."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from clipfleet import Client
from clipfleet.embedded import commands
from support import services

START_S = 300.0  # beside busy loops, on one core: ingest workers give way
HASH_MODEL = "hash:32"  # without torch a stack is ready in 4 s instead of 10; no meaning in it
STARTED: list[Path] = []  # data folders of this process's stacks, for the reports of failed tests
# What the tests set themselves must not come from the environment they run in.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFLEET_")}


@dataclass
class Up:
    """A running stack. `folder` is its data folder."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    url: str
    metrics_port: int = 0  # of the planner; then of the ingest worker, and of the query worker
    flower_port: int = 0

    def beside(self, name: str) -> Path:
        """A path for files to index, which cannot be in the data folder."""
        folder = self.folder.with_name(f"{self.folder.name}-beside")
        folder.mkdir(exist_ok=True)
        return folder / name

    def client(self) -> Client:
        return Client(self.url)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def part(self, name: str) -> psutil.Process:
        """The process of `valkey`, `milvus`, `planner`, `worker-ingest-1`, `worker-query`,
        or `gateway`, found by its command line."""
        words = {
            "valkey": "valkey-server",
            "milvus": "clipfleet.embedded.milvus_lite",
            "planner": "clipfleet.workers.planner",
            "worker-ingest-1": "worker-ingest-1@",
            "worker-query": "worker-query@",
            "gateway": "clipfleet.api.app",
            "flower": " flower --address=",
        }
        for child in psutil.Process(self.process.pid).children():
            if words[name] in " ".join(child.cmdline()):
                return child
        raise AssertionError(f"no process {name} below {self.process.pid}")

    @contextmanager
    def tidied(self) -> Iterator["Up"]:
        """Delete collections that are created in the block."""
        with self.client() as client:
            before = {collection.name for collection in client.collections()}
            try:
                yield self
            finally:
                for name in {collection.name for collection in client.collections()} - before:
                    client.delete_collection(name)

    def ready(self) -> bool:
        with self.http() as http:
            return http.get("/readyz").status_code == 200

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def cli(
        self, *args: str, timeout_s: float = 120, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        return cli(*args, timeout_s=timeout_s, CLIPFLEET_URL=self.url, **env)


def cli(*args: str, timeout_s: float = 120, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does. The exit code is not checked."""
    command = [commands.script("clipfleet"), *args]
    return subprocess.run(
        command,
        env={**CLEAN, **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def document(done: "subprocess.CompletedProcess[str]") -> Any:
    return json.loads(done.stdout)


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    while True:
        first = commands.free_port()
        try:
            with ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind((commands.LOOPBACK, port))
            return first
        except (OSError, OverflowError):
            continue


@contextmanager
def up(folder: Path, model: Path | str, *more: str, **env: str) -> Iterator[Up]:
    """Run a stack on a free port. It gets SIGINT at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    port = commands.free_port()
    process = start(folder, port, "--model", str(model), *more, **env)
    running = Up(process, folder, f"http://127.0.0.1:{port}")
    try:
        services.eventually(
            lambda: process.poll() is not None or running.ready(), START_S, "clipfleet up"
        )
        assert process.poll() is None, (folder / "up.log").read_text()
        yield running
    finally:
        stop(process)


def start(folder: Path, port: int, *more: str, **env: str) -> "subprocess.Popen[bytes]":
    STARTED.append(folder)
    command = [commands.script("clipfleet"), "up", "--data", str(folder), "--port", str(port)]
    with (folder / "up.log").open("ab") as out:
        return subprocess.Popen(
            [*command, *more], stdout=out, stderr=out, env={**CLEAN, **env}, start_new_session=True
        )


def stop(process: "subprocess.Popen[bytes]", timeout_s: float = 60) -> int:
    """Stop a stack as Ctrl-C does."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError("clipfleet up did not end at Ctrl-C") from None


def finished(client: Client, job_id: str, timeout_s: float = 180) -> Any:
    """Wait for a job and return it. Fails the test at the timeout."""

    def ended() -> Any:
        job = client.job(job_id)
        return job if job.finished_at else None

    return services.eventually(ended, timeout_s, f"the end of job {job_id}")


def photos(folder: Path, source: Sequence[Path], count: int) -> list[Path]:
    """Copy the first `count` photos into a folder, and return their paths there."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for photo in list(source)[:count]:
        copy = folder / photo.name
        copy.write_bytes(photo.read_bytes())
        copies.append(copy)
    return copies


def recent_logs(since: float, lines: int = 25) -> Iterator[tuple[str, str]]:
    """The names and ends of the log files that grew after `since`, in unix seconds."""
    for folder in dict.fromkeys(STARTED):
        for path in sorted({folder / "up.log", *folder.glob("logs/*.log")}):
            if path.exists() and path.stat().st_mtime >= since:
                end = path.read_text(errors="replace").splitlines()[-lines:]
                yield str(path.relative_to(folder.parent)), "\n".join(end)
