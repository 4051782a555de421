"""Runs real services for tests: Valkey, milvus-lite and a Milvus server, from their wheels."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis
import trustme

from clipfleet.common.errors import Unavailable
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded import commands

IN_CI = bool(os.environ.get("CI"))


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI, where a missing service would hide untested code."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


def eventually(check: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Call `check` until it returns something true, and return that. It may raise meanwhile."""
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
def valkey_with_tls(folder: Path, signed: "Certificate") -> Iterator[str]:
    """Run a Valkey with TLS for `localhost`, and yield its address with a restricted user."""
    folder.mkdir(parents=True, exist_ok=True)
    port = commands.free_port()
    with valkey(folder) as plain:
        with closing(redis.Redis.from_url(plain)) as client:
            client.acl_setuser(
                "app",
                enabled=True,
                passwords="+p@ss/word",
                keys=["*"],
                channels=["*"],
                categories=["+@all", "-@dangerous"],
            )
        target = int(plain.rpartition(":")[2].partition("/")[0])
        with process(tls_proxy(port, target, signed), folder / "tls.log"):
            eventually(partial(listens, port), 20, "the TLS of Valkey")
            yield f"rediss://app:p%40ss%2Fword@localhost:{port}/2"


def tls_proxy(port: int, target: int, signed: "Certificate") -> list[str]:
    """The command line of a process that adds TLS on `port` to the server on `target`."""
    proxy = [str(Path(__file__).parent / "tls_proxy.py"), str(port), str(target)]
    return [sys.executable, *proxy, str(signed.chain), str(signed.key)]


@contextmanager
def milvus_lite(folder: Path, **environment: str) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    port = commands.free_port()
    command = commands.milvus_lite(folder / "data", port)
    with process(command, folder / "log", **commands.MILVUS_LITE_ENVIRONMENT, **environment):
        yield _answering(commands.milvus_uri(port), 60)


@contextmanager
def plain_milvus_lite(folder: Path) -> Iterator[str]:
    """Run milvus-lite without the changes of clipfleet.embedded."""
    port = commands.free_port()
    code = "import sys; from milvus_lite.cmdline import main; sys.exit(main())"
    options = ["--data-dir", str(folder / "data"), "--host", commands.LOOPBACK]
    command = [sys.executable, "-c", code, "server", *options, "--port", str(port)]
    with process(command, folder / "plain.log"):
        yield _answering(commands.milvus_uri(port), 60)


@dataclass(frozen=True)
class Milvus:
    """A Milvus server. One that the tests start has TLS and a password."""

    uri: str
    token: str = ""
    authority: str = ""

    def store(self, timeout_s: float = 30, **otherwise: Any) -> MilvusStore:
        options = {"uri": self.uri, "token": self.token, "authority": self.authority, **otherwise}
        return MilvusStore(**options, timeout_s=timeout_s)


# Intervals in milliseconds, short enough for a server with one small collection. A strongly
# consistent read waits for the next time tick, 200 ms apart by default.
MILVUS_SERVER_ENVIRONMENT = {
    "PROXY_TIMETICKINTERVAL": "20",
    "QUERYCOORD_CHECKCHANNELINTERVAL": "100",
    "QUERYCOORD_DISTPULLINTERVAL": "100",
}
MILVUS_SERVER_PORTS = (
    "proxy-internal", "root-coord", "query-coord", "query-node", "index-coord", "index-node",
    "data-coord", "data-node",
)  # fmt: skip


@contextmanager
def milvus_server(folder: Path) -> Iterator[Milvus]:
    """Run a server whose certificate is for `localhost`. All ports are free ones."""
    if not shutil.which(commands.script("milvus-server")):
        missing("the wheel `milvus` is not installed (make install brings it on Linux x86-64)")
    if running := os.environ.get("CLIPFLEET_TEST_MILVUS"):
        yield Milvus(running)
        return
    port = commands.free_port()
    signed = certificate(folder / "tls", "localhost")
    command = [commands.script("milvus-server"), "--data", str(folder), "--proxy-port", str(port)]
    command += ["--tls-mode", "1", "--server-pem-path", str(signed.chain)]
    command += ["--server-key-path", str(signed.key), "--ca-pem-path", str(signed.authority)]
    command += ["--authorization-enabled", "true"]
    for name in MILVUS_SERVER_PORTS:
        command += [f"--{name}-port", str(commands.free_port())]
    milvus = Milvus(f"https://localhost:{port}", "root:Milvus", str(signed.authority))
    env = {**MILVUS_SERVER_ENVIRONMENT, "ETCD_CONFIG_PATH": str(_etcd_config(folder))}
    with process(command, folder / "log", **env):
        eventually(partial(_answers, milvus.store(2)), 180, "Milvus' answer")
        yield milvus


def _etcd_config(folder: Path) -> Path:
    """Write a configuration for the etcd in Milvus, which otherwise listens on 2379 and 2380."""
    client, peer = (f"http://{commands.LOOPBACK}:{commands.free_port()}" for _ in range(2))
    path = folder / "etcd.yaml"
    path.write_text(
        f"listen-client-urls: {client}\nadvertise-client-urls: {client}\n"
        f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\n"
        f"initial-cluster: default={peer}\n"
    )
    return path


@dataclass(frozen=True)
class Certificate:
    """Files: the certificate chain, its key, and the certificate of the authority."""

    chain: Path
    key: Path
    authority: Path


def certificate(folder: Path, *names: str) -> Certificate:
    """A certificate for these hosts, signed by a new authority."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Certificate(folder / "chain.pem", folder / "key.pem", folder / "authority.pem")
    authority = trustme.CA()
    issued = authority.issue_cert(*names)
    files.chain.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(files.key))
    authority.cert_pem.write_to_path(str(files.authority))
    return files


def _answering(uri: str, timeout_s: float) -> str:
    eventually(partial(_answers, MilvusStore(uri, timeout_s=2)), timeout_s, "the store's answer")
    return uri


def listens(port: int) -> bool:
    with socket.create_connection((commands.LOOPBACK, port), timeout=1):
        return True


def _answers(store: MilvusStore) -> bool:
    with suppress(Unavailable):
        store.ping()
        return True
    return False
