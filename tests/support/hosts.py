"""Hosts as network namespaces of this machine, each with its own address, name and loopback.

A bridge in another namespace connects them. The machine's own network is not changed. Needs root
and `ip`.
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
    """A host, with its host name and its address on the bridge."""

    name: str
    address: str
    namespace: str
    switch: str

    @property
    def plug(self) -> str:
        return f"to-{self.name}"

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command on this host."""
        there = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        return [*there, "sh", "-c", NAMED, self.name, *command]

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Drop all packets from and to this host until the block ends."""
        ip("-n", self.switch, "link", "set", self.plug, "nomaster")
        try:
            yield
        finally:
            ip("-n", self.switch, "link", "set", self.plug, "master", "bridge")

    @contextmanager
    def here(self) -> Iterator[None]:
        """Make this thread open its sockets on this host until the block ends."""
        with _namespace(Path("/proc/thread-self/ns/net")) as before:
            with _namespace(Path("/run/netns", self.namespace)) as there:
                _enter(there)
            try:
                yield
            finally:
                _enter(before)


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Yield one host for each name. Skips the test without network namespaces."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("hosts as network namespaces need root, ip and unshare")
    switch = f"clipfleet-{os.getpid()}"
    with ExitStack() as stack:
        try:
            _namespace_named(switch, stack)
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            created = [_host(name, number, switch, stack) for number, name in enumerate(names, 1)]
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield created


def _host(name: str, number: int, switch: str, stack: ExitStack) -> Host:
    host = Host(name, f"{NETWORK}.{number}", f"{switch}-{name}", switch)
    there = host.namespace
    _namespace_named(there, stack)
    ip("-n", switch, "link", "add", host.plug, "type", "veth", "peer", "eth0", "netns", there)
    ip("-n", switch, "link", "set", host.plug, "master", "bridge", "up")
    ip("-n", there, "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        ip("-n", there, "link", "set", device, "up")
    return host


def _namespace_named(name: str, stack: ExitStack) -> None:
    ip("netns", "add", name)
    stack.callback(ip, "netns", "delete", name)


@contextmanager
def _namespace(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


def _enter(namespace: int) -> None:
    """Do what os.setns does, which Python has since 3.12."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
