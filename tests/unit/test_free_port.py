"""Ports for parts that listen on this machine."""

import socket

import pytest

from clipfleet.embedded import commands


def test_a_free_port_is_none_of_outgoing_connections() -> None:
    assert commands.free_port() in commands.PORTS


def test_a_taken_port_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind((commands.LOOPBACK, 0))
        taken = listener.getsockname()[1]
        monkeypatch.setattr(commands, "PORTS", range(taken, taken + 1))
        assert commands.free_port() != taken
