"""The routes for many images at once, on a gateway whose parts are in memory."""

import asyncio
import io
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from clipfleet.api.app import create_app
from clipfleet.api.collections import bulk, export
from clipfleet.api.collections.export import GROUP_BYTES, ExportFailed
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.search.exact import check_exact_rows
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.thumbnails import thumbnail_key
from clipfleet.common.settings import Limits, Settings
from clipfleet.common.store import Record, StoreUnavailable
from clipfleet.common.store.filters import parse_filter
from clipfleet.testing import MemoryStore, memory_parts

DIM = 1_024
GROUP = GROUP_BYTES // (4 * DIM)


class Store(MemoryStore):
    """A store that is unavailable after `scans_left` scans: for one scan if `comes_back`, else for
    good."""

    scans_left = 1_000
    comes_back = False

    def scan(self, *args: Any, **kwargs: Any) -> list[Record]:
        self.scans_left -= 1
        if self.scans_left == -1 or (self.scans_left < 0 and not self.comes_back):
            raise StoreUnavailable("the store is away")
        return super().scan(*args, **kwargs)


class World:
    def __init__(self) -> None:
        limits = Limits(exact_rows=5, exports=1)
        settings = Settings(blobs="memory://clipfleet-unit-tests/whole", limits=limits)
        self.store = Store()
        parts = memory_parts(settings, store=self.store)
        self.gateway = Gateway(settings, parts)
        self.collection = Collection.new("c", metric="dot", model="m", dim=DIM, fields={})
        self.store.create(parts.catalogue.add(self.collection))
        self.app = create_app(settings, parts)
        self.app.state.gateway = self.gateway

    def put(self, count: int, namespace: str = "default") -> list[str]:
        """Store `count` rows; return their keys."""
        embedding = np.ones(DIM, np.float32)
        keys = [primary_key(namespace, f"{n}") for n in range(count)]
        self.store.upsert(
            self.collection,
            [Record(pk, f"{n}", namespace, "", embedding) for n, pk in enumerate(keys)],
        )
        return keys

    def post(self, what: str, **body: Any) -> httpx.Response:
        return self.send("POST", what, json=body)

    def get(self, what: str) -> httpx.Response:
        return self.send("GET", what)

    def send(self, method: str, what: str, **kwargs: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            there = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=there, base_url="http://here") as http:
                return await http.request(method, f"/v1/collections/c/{what}", **kwargs)

        return asyncio.run(sent())


@pytest.fixture
def world() -> World:
    return World()


def test_a_delete_whose_time_is_up_says_that_there_are_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "DELETE_BUDGET_S", -1.0)
    monkeypatch.setattr(bulk, "DELETE_BATCH", 40)
    world.put(100)
    answers = [world.post("delete", all=True).json() for _ in range(3)]
    assert [answer["deleted"] for answer in answers] == [40, 40, 20]
    assert [answer["more"] for answer in answers] == [True, True, False]
    assert world.store.count(world.collection) == 0


def test_a_delete_takes_step_after_step_while_there_is_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "DELETE_BATCH", 7)
    keys = world.put(21)
    blobs = world.gateway.blobs
    for pk in keys[:3]:
        blobs.put(thumbnail_key(world.collection, pk), io.BytesIO(b"a thumbnail"))
    assert world.post("delete", all=True).json() == {"deleted": 21, "more": False}
    assert world.store.count(world.collection) == 0
    assert not any(
        blobs._fs.exists(blobs._path(thumbnail_key(world.collection, pk))) for pk in keys
    )
    assert world.gateway.catalogue.seconds_since_write(world.collection) < 60


def test_a_delete_that_fails_midway_can_be_said_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "DELETE_BATCH", 10)
    world.put(25)
    world.store.scans_left = 2
    refused = world.post("delete", all=True)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    world.store.scans_left = 100
    assert world.post("delete", all=True).json() == {"deleted": 5, "more": False}


@pytest.mark.parametrize(
    "body",
    [{}, {"filter": None}, {"filter": {}}, {"filter": {"label": "a"}, "all": True}, {"al": True}],
)
def test_it_is_said_what_to_delete_or_nothing_is(world: World, body: dict[str, Any]) -> None:
    world.put(3)
    assert world.post("delete", **body).status_code == 422
    assert world.store.count(world.collection) == 3


def test_the_filter_of_a_deletion_is_short(world: World) -> None:
    """Redis keeps it for an hour, also when it matches nothing."""
    world.put(3)
    short, long = ({"label": {"$in": ["ä" * 100] * count}} for count in (156, 157))
    assert world.post("delete", filter=short).json() == {"deleted": 0, "more": False}
    refused = world.post("delete", filter=long)
    assert refused.status_code == 422
    assert "at most 32000 bytes as JSON" in refused.json()["detail"]
    (kept,) = world.gateway.catalogue.deletions(world.collection, 0)
    assert kept.filter == short
    assert world.post("count", filter=long).status_code == 200


@pytest.mark.parametrize("what", ["count", "delete"])
def test_what_cannot_be_a_filter_or_a_namespace_is_refused(world: World, what: str) -> None:
    for body in ({"filter": {"$up": 1}}, {"namespace": "a\0b", "all": True}, {"namespace": ""}):
        assert world.post(what, **body).status_code == 422


def test_cursors_are_keys_and_pages_have_a_limit(world: World) -> None:
    for query in ("cursor=x", "cursor=" + "g" * 32, "limit=0", "limit=10001", "namespace="):
        assert world.get(f"ids?{query}").status_code == 422
    world.put(2)
    last = world.get("ids?cursor=" + "f" * 32).json()
    assert last == {"ids": [], "next": None}


@pytest.mark.parametrize("count", [0, 1, GROUP, GROUP + 1])
def test_an_export_holds_every_row_once_whatever_fits_a_group(world: World, count: int) -> None:
    keys = world.put(count)
    answer = world.get("export")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="c.parquet"'
    table = pq.read_table(io.BytesIO(answer.content))
    assert sorted(table["id"].to_pylist(), key=int) == [f"{n}" for n in range(len(keys))]
    assert world.gateway.exports.taken == 0


def test_an_export_that_cannot_begin_is_a_problem_and_one_that_breaks_has_no_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_OUTAGE_S", 0.0)
    monkeypatch.setattr(export, "RETRY_INTERVAL_S", 0.0)
    world.put(GROUP + 1)
    world.store.scans_left = 0
    assert world.get("export").status_code == 503
    world.store.scans_left = 1
    with pytest.raises(
        ExportFailed, match="the store is away"
    ):  # a real server closes the connection
        world.get("export")
    assert world.gateway.exports.taken == 0


def test_a_store_that_is_away_for_a_moment_does_not_end_an_export(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "RETRY_INTERVAL_S", 0.0)
    world.put(GROUP + 1)
    world.store.scans_left, world.store.comes_back = 1, True
    table = pq.read_table(io.BytesIO(world.get("export").content))
    assert table.num_rows == GROUP + 1
    assert world.store.scans_left == -2


def test_only_so_many_are_exported_at_once(world: World) -> None:
    with world.gateway.exports.hold():
        answer = world.get("export")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")


def test_an_exact_search_of_too_many_is_refused_with_both_numbers(world: World) -> None:
    world.put(5)
    world.put(10, namespace="other")
    asyncio.run(check_exact_rows(world.collection, "default", None, world.gateway))
    world.put(6)
    where = parse_filter({"id": "1"}, {})
    asyncio.run(check_exact_rows(world.collection, "default", where, world.gateway))
    with pytest.raises(InvalidRequest, match="at most 5 images, but 6 match"):
        asyncio.run(check_exact_rows(world.collection, "default", None, world.gateway))
