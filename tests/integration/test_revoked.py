"""A long answer ends when its API key ends."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipfleet.api.collections import export
from clipfleet.common.ledger import NewJob
from clipfleet.testing import MemoryService, write_keys
from support.gateways import parsed
from support.services import eventually

KEYS: dict[str, dict[str, Any]] = {
    "stays": {"name": "stays"},
    "goes": {"name": "goes", "scopes": ["read"], "collections": ["mine"]},
}


@pytest.fixture
def service() -> Iterator[MemoryService]:
    with MemoryService(dim=4, api_keys=KEYS) as running:
        with http(running, "stays") as owner:
            assert owner.put("/v1/collections/mine", json={}).status_code == 201
            vectors = [{"id": str(n), "values": [1.0, 0, 0, n]} for n in range(6)]
            answer = owner.post("/v1/collections/mine/vectors", json={"vectors": vectors})
            assert answer.status_code == 200
        yield running


def http(service: MemoryService, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False)


def revoke(service: MemoryService) -> None:
    write_keys(service.folder / "keys.json", {"stays": KEYS["stays"]})


def narrow(service: MemoryService) -> None:
    other = {**KEYS["goes"], "collections": ["other"]}
    write_keys(service.folder / "keys.json", {**KEYS, "goes": other})


def expire(service: MemoryService) -> None:
    over = {**KEYS["goes"], "expires_at": "2020-01-31T00:00:00Z"}
    write_keys(service.folder / "keys.json", {**KEYS, "goes": over})


ENDS = pytest.mark.parametrize("end", [revoke, narrow, expire])


def waiting_job(service: MemoryService) -> str:
    """Create a job that no worker takes and return its id."""
    mine = service.parts.catalogue.find("mine")
    assert mine
    items = [{"id": "1", "uri": "", "read": "blob:uploads/waits/0"}]
    new = NewJob(
        id="waits", collection="mine", generation=mine.generation, model="nobody",
        namespace="default", source={"type": "upload", "items": items},
    )  # fmt: skip
    return service.parts.ledger.create(new).id


@ENDS
def test_a_job_s_events_end(service: MemoryService, end: Callable[[MemoryService], None]) -> None:
    path = f"/v1/jobs/{waiting_job(service)}/events"
    with http(service, "stays") as owner, http(service, "goes") as client:
        with client.stream("GET", path) as answer, owner.stream("GET", path) as other:
            events, others = parsed(answer.iter_lines()), parsed(other.iter_lines())
            assert {next(events)["event"], next(others)["event"]} == {"job"}
            end(service)
            last = list(events)[-1]
            assert last["event"] == "unauthorized"
            assert last["data"] == {"detail": "the API key is no longer valid"}
            service.parts.ledger.cancel("waits")
            assert list(others)[-1]["data"]["state"] == "cancelled"
        assert client.get(path).status_code in (401, 404)


@ENDS
def test_an_export_breaks_off(
    service: MemoryService,
    end: Callable[[MemoryService], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "GROUP_BYTES", 4 * 4)  # one row each
    pages, go_on = service.parts.store.scan, threading.Event()

    def gated(*args: Any, **options: Any) -> Any:
        if options.get("after"):
            assert go_on.wait(60)
        return pages(*args, **options)

    monkeypatch.setattr(service.parts.store, "scan", gated)
    path = "/v1/collections/mine/export"
    with http(service, "goes") as client, client.stream("GET", path) as answer:
        assert answer.status_code == 200
        body = answer.iter_bytes()
        assert next(body).startswith(b"PAR1")
        end(service)
        shown = "/v1/collections/mine"
        eventually(lambda: client.get(shown).status_code in (401, 404), 30, "the key's end")
        go_on.set()
        with pytest.raises(httpx.RemoteProtocolError):
            list(body)
    with http(service, "stays") as owner:
        whole = owner.get(path)
        assert whole.content.endswith(b"PAR1")


def test_a_keys_file_that_is_broken_meanwhile_ends_nothing(
    service: MemoryService, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/v1/jobs/{waiting_job(service)}/events"
    with http(service, "goes") as client, client.stream("GET", path) as answer:
        events = parsed(answer.iter_lines())
        next(events)
        Path(service.folder, "keys.json").write_text(json.dumps({"keys": "none"}))
        refused = "the keys read before stay in force"
        eventually(lambda: refused in caplog.text, 30, "the broken file was read")
        service.parts.ledger.cancel("waits")
        assert list(events)[-1]["data"]["state"] == "cancelled"
