"""Real services for the tests: Valkey, milvus-lite and a Milvus server, from their wheels."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from clipfleet.common.errors import Unavailable
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded import commands

IN_CI = bool(os.environ.get("CI"))


def missing(reason: str) -> None:
    """Skip here, fail in CI: a service that is missing there hides untested code."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


def eventually(check: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true answer of `check`, which may raise while things are starting."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = check()
            if last:
                return last
        except Exception as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {timeout_s} s; last seen: {last!r}")


@contextmanager
def process(command: Sequence[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **env}, start_new_session=True
        )
    try:
        yield child
    finally:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # and whatever it left behind
        child.wait()


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    port = commands.free_port()
    url = commands.valkey_url(port, "secret")
    with process(commands.valkey(folder, port, "secret"), folder / "log"):
        client = redis.Redis.from_url(url)
        eventually(client.ping, 20, "Valkey's answer")
        client.close()
        yield url


@contextmanager
def milvus_lite(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    port = commands.free_port()
    command = commands.milvus_lite(folder / "data", port)
    with process(command, folder / "log", **commands.MILVUS_LITE_ENVIRONMENT):
        yield _answering(commands.milvus_uri(port), 60)


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    if not shutil.which(commands.script("milvus-server")):
        missing("the wheel `milvus` is not installed (make install brings it on Linux x86-64)")
    if running := os.environ.get("CLIPFLEET_TEST_MILVUS"):
        yield running
        return
    port = commands.free_port()
    command = [commands.script("milvus-server"), "--data", str(folder), "--proxy-port", str(port)]
    folder.mkdir(parents=True, exist_ok=True)
    with process(command, folder / "log"):
        yield _answering(commands.milvus_uri(port), 180)


def _answering(uri: str, timeout_s: float) -> str:
    def answers() -> bool:
        with suppress(Unavailable):
            MilvusStore(uri, timeout_s=2).ping()
            return True
        return False

    eventually(answers, timeout_s, "the store's answer")
    return uri
