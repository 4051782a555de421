"""A gateway without keys, served by uvicorn: only this machine reaches it.

The gateway has no Redis and no Milvus, so a client that is let in gets 503.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn

from clipfleet.api.app import create_app
from clipfleet.api.dispatch.parts import connect
from clipfleet.common.settings import Settings
from clipfleet.embedded import commands
from support import services

LET_IN, SENT_AWAY = 503, 401


@contextmanager
def gateway(
    folder: Path, listener: socket.socket | None = None, is_open: bool = False, **options: Any
) -> Iterator[int]:
    """Run a gateway and yield the port of `listener`; `options` go to uvicorn."""
    nowhere = f"127.0.0.1:{commands.free_port()}"
    settings = Settings(
        redis_url=f"redis://{nowhere}",
        milvus_uri=f"http://{nowhere}",
        blobs=str(folder / "blobs"),
        keys_file="",
        allowed_hosts=(),
        open=is_open,
    )
    app = create_app(settings, connect(settings))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))
    thread = threading.Thread(target=server.run, args=([listener] if listener else None,))
    thread.start()
    try:
        services.eventually(lambda: server.started, 60, "the gateway's start")
        yield listener.getsockname()[1] if listener else 0
    finally:
        server.should_exit = True
        thread.join()


def everywhere() -> socket.socket:
    return socket.create_server(("0.0.0.0", 0))


def status_of(url: str, header: str = "", uds: Path | None = None) -> int:
    transport = httpx.HTTPTransport(uds=str(uds)) if uds else httpx.HTTPTransport()
    headers = {"X-Forwarded-For": header} if header else {}
    with httpx.Client(transport=transport, timeout=30) as http:
        return http.get(f"{url}/v1/jobs", headers=headers).status_code


def own_address() -> str:
    """Return an address of this machine that is not loopback, such as a stranger would have."""
    for cards in psutil.net_if_addrs().values():
        for card in cards:
            if card.family == socket.AF_INET and not card.address.startswith("127."):
                return card.address
    pytest.skip("this machine has no address but loopback")


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_from_an_address_that_is_not_loopback(tmp_path: Path, is_open: bool) -> None:
    with gateway(tmp_path, everywhere(), is_open) as port:
        elsewhere = f"http://{own_address()}:{port}"
        assert status_of(f"http://127.0.0.1:{port}") == LET_IN
        assert status_of(elsewhere) == (LET_IN if is_open else SENT_AWAY)
        assert httpx.get(f"{elsewhere}/healthz").status_code == 200


def test_from_both_families_of_addresses_at_once(tmp_path: Path) -> None:
    """With `--host ::`, a client of 127.0.0.1 has the address ::ffff:127.0.0.1."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with gateway(tmp_path, listener) as port:
        assert status_of(f"http://127.0.0.1:{port}") == LET_IN
        assert status_of(f"http://[::1]:{port}") == LET_IN
        assert status_of(f"http://{own_address()}:{port}") == SENT_AWAY


@pytest.mark.parametrize("trusted", ["127.0.0.1", "*"])
def test_a_proxy_on_this_machine_does_not_bring_strangers_in(tmp_path: Path, trusted: str) -> None:
    """uvicorn trusts the client's address from this proxy alone, or from every proxy."""
    with gateway(tmp_path, everywhere(), forwarded_allow_ips=trusted) as port:
        here = f"http://127.0.0.1:{port}"
        assert status_of(here) == LET_IN
        assert status_of(here, "203.0.113.9") == SENT_AWAY
        assert status_of(f"http://{own_address()}:{port}", "127.0.0.1") == SENT_AWAY


def test_a_unix_socket_is_this_machine_unless_a_proxy_speaks(tmp_path: Path) -> None:
    uds = tmp_path / "s"
    with gateway(tmp_path, uds=str(uds)):
        assert status_of("http://here", uds=uds) == LET_IN
        assert status_of("http://here", "203.0.113.9", uds) == SENT_AWAY
