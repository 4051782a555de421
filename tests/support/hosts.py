"""Hosts as network namespaces of this machine: own addresses and names, no shared loopback.

They hang on one switch, a bridge in a namespace of its own; the machine's own network is left as it
is. Needs root and `ip`.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NETWORK = "198.18.77"  # set aside for such tests by RFC 2544
CLONE_NEWNET = 0x40000000
NAMED = 'hostname "$0" && exec "$@"'


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """`name`: its host name; `address`: on the switch."""

    name: str
    address: str
    namespace: str
    switch: str

    @property
    def plug(self) -> str:
        return f"to-{self.name}"

    def command(self, command: Sequence[str]) -> list[str]:
        """The same, run there."""
        there = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        return [*there, "sh", "-c", NAMED, self.name, *command]

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """No packet comes or goes, and nobody is told."""
        ip("-n", self.switch, "link", "set", self.plug, "nomaster")
        try:
            yield
        finally:
            ip("-n", self.switch, "link", "set", self.plug, "master", "bridge")

    @contextmanager
    def here(self) -> Iterator[None]:
        """The sockets that this thread opens are that host's."""
        with _namespace(Path("/proc/thread-self/ns/net")) as before:
            with _namespace(Path("/run/netns", self.namespace)) as there:
                _enter(there)
            try:
                yield
            finally:
                _enter(before)


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """One host for each name; skips where namespaces are not to be had."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("hosts as network namespaces need root, ip and unshare")
    switch = f"clipfleet-{os.getpid()}"
    with ExitStack() as made:
        try:
            _namespace_named(switch, made)
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            found = [_host(name, number, switch, made) for number, name in enumerate(names, 1)]
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield found


def _host(name: str, number: int, switch: str, made: ExitStack) -> Host:
    host = Host(name, f"{NETWORK}.{number}", f"{switch}-{name}", switch)
    there = host.namespace
    _namespace_named(there, made)
    ip("-n", switch, "link", "add", host.plug, "type", "veth", "peer", "eth0", "netns", there)
    ip("-n", switch, "link", "set", host.plug, "master", "bridge", "up")
    ip("-n", there, "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        ip("-n", there, "link", "set", device, "up")
    return host


def _namespace_named(name: str, made: ExitStack) -> None:
    ip("netns", "add", name)
    made.callback(ip, "netns", "delete", name)


@contextmanager
def _namespace(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


def _enter(namespace: int) -> None:
    """As os.setns, which Python has from 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
