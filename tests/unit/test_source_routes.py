"""Registering, showing and deleting sources."""

from pathlib import Path
from typing import Any

import pytest

from support.scheduling import FOLDER, Scheduling

PATH = "/v1/collections/acme/sources"
SECRET = "whsec_" + "a" * 44


@pytest.fixture
def scheduling(tmp_path: Path) -> Scheduling:
    return Scheduling(tmp_path)


def test_a_source_is_shown_as_it_was_registered(scheduling: Scheduling) -> None:
    created = scheduling.world.ask(
        f"PUT {PATH}/camera-7.north",
        "admin",
        json={**FOLDER, "namespace": "n", "interval": "1h", "on_existing": "replace"},
    )
    assert created.status_code == 201
    shown = created.json()
    assert (shown["name"], shown["collection"], shown["key"]) == ("camera-7.north", "acme", "admin")
    assert (shown["interval"], shown["source"]) == (3_600, "/pictures")
    assert shown["job"] == {**FOLDER, "namespace": "n", "on_existing": "replace"}
    assert (shown["last_run"], shown["running"], shown["waiting_keys"]) == (None, None, 0)
    assert scheduling.show("camera-7.north") == shown
    listed = scheduling.world.ask(f"GET {PATH}", "read")
    assert listed.json() == {"sources": [shown]}


def test_registering_again_changes_only_what_is_different(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    scheduling.later()
    scheduling.end()
    scheduling.later(5)
    before = scheduling.show()
    scheduling.world.ask(f"POST {PATH}/s/pause", "admin")
    again = scheduling.world.ask(f"PUT {PATH}/s", "admin", json={**FOLDER, "interval": "1m"})
    assert (again.status_code, again.json()["paused"]) == (200, True)
    resumed = scheduling.put(interval=60, paused=False)
    assert resumed == before
    assert scheduling.later() == []
    assert scheduling.put(interval=600)["next_run"] == before["next_run"]
    assert scheduling.put(interval=20)["next_run"] == scheduling.clock.now + 20
    assert scheduling.put(interval=20, namespace="n")["next_run"] == scheduling.clock.now
    assert scheduling.put(namespace="n")["next_run"] is None


def test_a_source_that_runs_may_be_replaced_and_deleted(scheduling: Scheduling) -> None:
    scheduling.put(interval=60)
    (job,) = scheduling.later()
    assert scheduling.put(interval=60, namespace="other")["running"]["job"] == job
    assert scheduling.later(5) == []
    assert scheduling.world.ask(f"DELETE {PATH}/s", "write").status_code == 204
    assert scheduling.world.ask(f"GET {PATH}/s", "admin").status_code == 404
    assert scheduling.ledger.job(job).state == "queued"
    assert scheduling.later(60) == []
    gone = scheduling.world.ask(f"DELETE {PATH}/s", "admin")
    assert gone.status_code == 404
    assert "register it with PUT /v1/collections/acme/sources/NAME" in gone.json()["detail"]


def test_no_answer_has_a_secret(scheduling: Scheduling) -> None:
    urls = {"type": "urls", "urls": ["https://me:word@example.com/a.jpg?sig=word"]}
    table = {"type": "manifest", "uri": "https://me:word@example.com/t.csv?sig=word"}
    sources = {"type": "list", "sources": [table, FOLDER["source"]]}
    webhook = {"url": "https://example.com/hook?word=1", "secret": SECRET}
    for source in (urls, table, sources):
        shown = scheduling.world.ask(
            f"PUT {PATH}/s", "admin", json={"source": source, "webhook": webhook}
        )
        assert shown.status_code in (200, 201), shown.text
        assert "word" not in shown.text
        assert SECRET not in shown.text
        assert "example.com" in shown.text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"interval": "9s"}, "the shortest is 10 s (CLIPFLEET_LIMITS__SOURCE_INTERVAL_S)"),
    ({"interval": 0.5}, "CLIPFLEET_LIMITS__SOURCE_INTERVAL_S"),
    ({"interval": "soon"}, '"30s", "15m", "1h" or "1d"'),
    ({"interval": "-5m"}, '"30s", "15m", "1h" or "1d"'),
    ({"interval": 0}, "greater than 0"),
    ({"interval": "9999d"}, "less than or equal to"),
    ({"interval": True}, "interval"),
    ({"intervall": "1h"}, "did you mean 'interval'?"),
    ({"source": {"type": "bucket", "uri": "/pictures"}}, "is not a bucket"),
]


@pytest.mark.parametrize(("body", "problem"), REFUSED)
def test_what_cannot_be_registered(
    scheduling: Scheduling, body: dict[str, Any], problem: str
) -> None:
    refused = scheduling.world.ask(f"PUT {PATH}/s", "admin", json={**FOLDER, **body})
    assert refused.status_code == 422, refused.text
    assert problem.replace('"', '\\"') in refused.text
    assert scheduling.registry.all("acme") == []


@pytest.mark.parametrize("name", ["-a", "é", "a%20b", "a:b", ".a", "a" * 64, "a%0Ab"])
def test_names_with_odd_characters_are_refused(scheduling: Scheduling, name: str) -> None:
    refused = scheduling.world.ask(f"PUT {PATH}/{name}", "admin", json=FOLDER)
    assert refused.status_code in (404, 422)
    assert scheduling.registry.all("acme") == []


def test_a_source_that_the_key_may_not_read_is_not_registered(scheduling: Scheduling) -> None:
    body = {"source": {"type": "folder", "path": "/etc"}, "interval": 60}
    refused = scheduling.world.ask(f"PUT {PATH}/s", "admin", json=body)
    assert refused.status_code == 403
    assert "CLIPFLEET_SOURCE_ROOTS" in refused.json()["detail"]
    assert scheduling.registry.all("acme") == []


def test_a_collection_has_so_many_sources_at_most(
    scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.api.sources.routes.MAX_SOURCES", 2)
    scheduling.put("a")
    scheduling.put("b")
    refused = scheduling.world.ask(f"PUT {PATH}/c", "admin", json=FOLDER)
    assert refused.status_code == 422
    assert "has 2 sources, which is the limit" in refused.json()["detail"]
    scheduling.put("b", interval=60)
