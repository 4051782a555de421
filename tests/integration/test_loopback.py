"""A real gateway without keys: who reaches it from this machine, and who from elsewhere. It has no
Redis and no Milvus, so that whoever is let in hears 503."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from clipfleet.embedded import commands
from support import services, stack

LET_IN, SENT_AWAY = 503, 401


@contextmanager
def gateway(folder: Path, where: list[str], **env: str) -> Iterator[None]:
    asgi = ["--factory", "clipfleet.api.app:create_app", "--log-level", "warning"]
    nowhere = f"127.0.0.1:{commands.free_port()}"
    told = {
        "CLIPFLEET_REDIS_URL": f"redis://{nowhere}",
        "CLIPFLEET_MILVUS_URI": f"http://{nowhere}",
        "CLIPFLEET_KEYS_FILE": "",
        "CLIPFLEET_OPEN": "false",
        "CLIPFLEET_ALLOWED_HOSTS": "[]",
        **env,
    }
    command = [commands.script("uvicorn"), *asgi, *where]
    with services.process(command, folder / "log", **told):
        yield


def asked(url: str, header: str = "", uds: Path | None = None) -> int:
    transport = httpx.HTTPTransport(uds=str(uds)) if uds else httpx.HTTPTransport()
    headers = {"X-Forwarded-For": header} if header else {}
    with httpx.Client(transport=transport, timeout=30) as http:
        return http.get(f"{url}/v1/jobs", headers=headers).status_code


def up(url: str) -> None:
    services.eventually(lambda: asked(url), 60, "the gateway's answer")


def listens(uds: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(uds))
        return True


def own_address() -> str:
    """Of this machine, but not loopback: who comes from there is not told from a stranger."""
    for cards in psutil.net_if_addrs().values():
        for card in cards:
            if card.family == socket.AF_INET and not card.address.startswith("127."):
                return card.address
    pytest.skip("this machine has no address but loopback")


@pytest.mark.parametrize("env", [{}, {"CLIPFLEET_OPEN": "true"}], ids=["closed", "open"])
def test_from_an_address_that_is_not_loopback(tmp_path: Path, env: dict[str, str]) -> None:
    port = commands.free_port()
    with gateway(tmp_path, ["--host", "0.0.0.0", "--port", str(port)], **env):
        here, elsewhere = f"http://127.0.0.1:{port}", f"http://{own_address()}:{port}"
        up(here)
        assert asked(here) == LET_IN
        assert asked(elsewhere) == (LET_IN if env else SENT_AWAY)
        assert httpx.get(f"{elsewhere}/healthz").status_code == 200


def test_from_both_families_of_addresses_at_once(tmp_path: Path) -> None:
    """`--host ::` sees clients of 127.0.0.1 as ::ffff:127.0.0.1 where both are served."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        command = [
            commands.script("uvicorn"), "--factory", "clipfleet.api.app:create_app",
            "--fd", str(listener.fileno()),
        ]  # fmt: skip
        env = {**stack.CLEAN, "CLIPFLEET_REDIS_URL": "redis://127.0.0.1:1"}
        with (tmp_path / "log").open("ab") as out:
            child = subprocess.Popen(
                command, env=env, pass_fds=[listener.fileno()], stdout=out, stderr=out
            )
        try:
            for url in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}"):
                up(url)
                assert asked(url) == LET_IN
            assert asked(f"http://{own_address()}:{port}") == SENT_AWAY
        finally:
            child.terminate()
            child.wait(30)


@pytest.mark.parametrize("trusted", ["127.0.0.1", "*"])
def test_a_proxy_on_this_machine_does_not_bring_strangers_in(tmp_path: Path, trusted: str) -> None:
    """Whether uvicorn takes its word for where the client is, or anybody's."""
    port = commands.free_port()
    where = ["--host", "0.0.0.0", "--port", str(port), "--forwarded-allow-ips", trusted]
    with gateway(tmp_path, where):
        here = f"http://127.0.0.1:{port}"
        up(here)
        assert asked(here, "203.0.113.9") == SENT_AWAY
        assert asked(f"http://{own_address()}:{port}", "127.0.0.1") == SENT_AWAY


def test_a_unix_socket_is_this_machine_unless_a_proxy_speaks(tmp_path: Path) -> None:
    uds = tmp_path / "gateway.sock"
    with gateway(tmp_path, ["--uds", str(uds)]):
        services.eventually(lambda: listens(uds), 60, "the gateway's start")
        assert asked("http://here", uds=uds) == LET_IN
        assert asked("http://here", "203.0.113.9", uds) == SENT_AWAY
