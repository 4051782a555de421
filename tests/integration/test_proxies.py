"""Proxy settings of the environment: no proxy is asked for this machine, and bad ones are named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfleet.common.settings import Settings
from clipfleet.common.store.milvus import make_store
from support import services, stack
from support.clients import Answer, client_class, service
from support.silent import Silent, silent

__all__ = ["client_class"]

NAMES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
USELESS = ["foo://user:secret@proxy:1", "socks5://user:secret@proxy:1", ":::", "http://[::1"]


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """A proxy that never answers, for everything."""
    with silent() as there:
        for name in NAMES:
            monkeypatch.setenv(name, there.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield there


def test_a_client_asks_no_proxy_for_a_service_on_this_machine(
    proxy: Silent, client_class: Any
) -> None:
    with service(lambda _: Answer({"jobs": []})) as there:
        port = there.url.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost"):
            with client_class(f"http://{host}:{port}", timeout_s=20) as client:
                assert client.jobs() == []
    assert proxy.accepted == 0


@pytest.mark.parametrize("setting", USELESS)
def test_a_useless_proxy_is_no_matter_for_a_service_on_this_machine(
    client_class: Any, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("http_proxy", setting)
    with service(lambda _: Answer({"jobs": []})) as there, client_class(there.url) as client:
        assert client.jobs() == []


@pytest.mark.parametrize("setting", USELESS)
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_for_another_machine_the_settings_are_named_in_one_line(name: str, setting: str) -> None:
    env: dict[str, Any] = {name: setting, "CLIPFLEET_URL": "http://clipfleet.invalid"}
    done = stack.cli("collections", "list", **env)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "http_proxy, https_proxy, all_proxy and no_proxy of the environment" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("proxy", ["http://proxy.invalid", "foo"])
def test_a_proxy_that_cannot_be_reached_is_a_possible_reason(proxy: str) -> None:
    env: dict[str, Any] = {
        "http_proxy": proxy,
        "CLIPFLEET_URL": "http://clipfleet.invalid",
    }
    done = stack.cli("collections", "list", **env)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "may name a proxy for it" in line


def test_the_store_asks_no_proxy_for_milvus_on_this_machine(proxy: Silent, tmp_path: Path) -> None:
    with services.milvus_lite(tmp_path) as uri:
        make_store(Settings(milvus_uri=uri)).ping()
    assert proxy.accepted == 0
