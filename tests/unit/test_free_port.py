"""Ports that are given out stay free for whoever asked."""

import socket
import sys

import pytest

from clipfleet.embedded import commands


def test_a_port_is_given_out_once_even_before_anything_listens_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = range(commands.PORTS.start, commands.PORTS.start + 40)
    monkeypatch.setattr(commands, "PORTS", few)
    ports = [port for port in (commands.free_port() for _ in range(12)) if port in few]
    assert len(ports) == len(set(ports))


@pytest.mark.skipif(sys.platform != "linux", reason="ports are reserved on Linux only")
def test_a_port_that_another_process_was_given_is_passed_over() -> None:
    port = commands.free_port()
    with pytest.raises(OSError, match="in use"):
        commands._reserve(port)
    with socket.socket() as listener:
        listener.bind((commands.LOOPBACK, port))
