"""Without keys: which requests count as local, and which only look local."""

from pathlib import Path
from typing import Any

import pytest

from support.gateway_harness import HERE, World

ELSEWHERE = ("192.0.2.7", 1)
LOCAL = [HERE, ("127.8.9.1", 5), ("::1", 5), ("::ffff:127.0.0.1", 5)]
REMOTE = [ELSEWHERE, ("::ffff:192.0.2.7", 5), ("2001:db8::1", 5), ("fe80::1%eth0", 5), ("name", 5)]


@pytest.mark.parametrize("client", LOCAL)
def test_without_keys_this_machine_is_answered(tmp_path: Path, client: Any) -> None:
    world = World(tmp_path, keys_file="")
    assert world.ask("GET /v1/jobs", client=client).status_code == 200
    assert world.ask("DELETE /v1/collections/acme", client=client).status_code == 204


def test_who_comes_by_a_unix_socket_is_on_this_machine(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="")
    assert world.ask("GET /v1/jobs", client=None, at="http://here").status_code == 200


@pytest.mark.parametrize("client", REMOTE)
def test_without_keys_nobody_else_is(tmp_path: Path, client: Any) -> None:
    world = World(tmp_path, keys_file="")
    refused = world.ask("GET /v1/jobs", client=client)
    assert refused.status_code == 401
    assert refused.json()["type"] == "urn:problem:clipfleet:no-keys"
    assert "CLIPFLEET_KEYS_FILE" in refused.json()["detail"]
    for call in ("GET /healthz", "GET /", "GET /page/main.js", "GET /docs"):
        assert world.ask(call, client=client).status_code == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
@pytest.mark.parametrize("client", [HERE, None])
def test_what_passed_a_proxy_is_not_of_this_machine(
    tmp_path: Path, header: str, client: Any
) -> None:
    world = World(tmp_path, keys_file="")
    headers = {header: "127.0.0.1"}
    assert world.ask("GET /v1/jobs", client=client, headers=headers).status_code == 401


def test_a_client_that_hung_up_is_not_taken_for_local(tmp_path: Path) -> None:
    """uvicorn does not know the address of such a client, but carries the request out."""
    world = World(tmp_path, keys_file="")
    assert world.ask("GET /v1/jobs", client=None, at="http://127.0.0.1:8000").status_code == 401


def test_other_sites_pages_are_not_of_this_machine(tmp_path: Path) -> None:
    world = World(tmp_path, keys_file="")
    here = "http://localhost:8000"
    assert world.ask("GET /v1/jobs", at=here).status_code == 200
    rebound = world.ask("GET /v1/jobs", at="http://evil.example:8000")
    assert rebound.status_code == 403
    assert "CLIPFLEET_ALLOWED_HOSTS" in rebound.json()["detail"]
    for origin, status in (("http://evil.example", 403), (here, 204), ("null", 403)):
        headers = {"origin": origin}
        answer = world.ask("DELETE /v1/collections/acme", at=here, headers=headers)
        assert answer.status_code == status
    listed = World(tmp_path, keys_file="", allowed_hosts=("photos.test",))
    assert listed.ask("GET /v1/jobs", at="http://photos.test:8000").status_code == 200
