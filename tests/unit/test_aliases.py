"""Aliases: names that move from one collection to another, and what keys may do with them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from clipfleet import Client, NotFound, ProblemError
from clipfleet.common.collection import Alias, Collection
from clipfleet.common.errors import Conflict
from clipfleet.common.ledger.catalogue import MemoryCatalogue
from clipfleet.testing import MemoryService, MemoryStore
from support.gateway_harness import World

DIM = 8


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def put(world: World, alias: str, collection: str, key: str = "admin") -> httpx.Response:
    return world.ask(f"PUT /v1/aliases/{alias}", key, json={"collection": collection})


def alias_of(world: World, alias: str, key: str = "admin") -> Any:
    answer = world.ask(f"GET /v1/aliases/{alias}", key)
    return answer.json()["collection"] if answer.status_code == 200 else answer.status_code


def test_an_alias_is_created_moved_listed_and_deleted(world: World) -> None:
    created = put(world, "shop", "acme")
    assert (created.status_code, created.json()["collection"]) == (201, "acme")
    assert world.ask("GET /v1/collections/shop", "read").json()["name"] == "acme"
    moved = put(world, "shop", "other")
    assert (moved.status_code, moved.json()["name"]) == (200, "shop")
    assert world.ask("GET /v1/collections/shop", "read").json()["name"] == "other"
    put(world, "a", "acme")
    listed = world.ask("GET /v1/aliases", "read").json()["aliases"]
    assert [(alias["name"], alias["collection"]) for alias in listed] == [
        ("a", "acme"),
        ("shop", "other"),
    ]
    assert world.ask("DELETE /v1/aliases/shop", "admin").status_code == 204
    assert world.ask("DELETE /v1/aliases/shop", "admin").status_code == 404
    assert world.ask("GET /v1/aliases/shop", "read").status_code == 404
    assert world.ask("GET /v1/collections/shop", "read").status_code == 404
    assert world.ask("GET /v1/collections/other", "read").status_code == 200


def test_a_name_is_either_a_collections_or_an_aliass(world: World) -> None:
    put(world, "shop", "acme")
    for alias, collection, status, reason in (
        ("other", "acme", 409, "there is a collection called 'other'"),
        ("acme", "acme", 409, "there is a collection called 'acme'"),
        ("more", "shop", 409, "'shop' is an alias"),
        ("more", "none", 404, "there is no collection 'none'"),
        ("-", "acme", 422, "cannot name an alias"),
        ("a.b", "acme", 422, "cannot name an alias"),
    ):
        refused = put(world, alias, collection)
        assert refused.status_code == status
        assert reason in refused.json()["detail"]
    body = {"metric": "dot", "model": "m"}
    refused = world.ask("PUT /v1/collections/shop", "admin", json=body)
    assert (refused.status_code, "is an alias" in refused.json()["detail"]) == (409, True)
    bodies: list[Any] = [{}, {"collection": ""}, {"collection": 3}, {"collection": "acme", "x": 1}]
    for wrong in bodies:
        assert world.ask("PUT /v1/aliases/b", "admin", json=wrong).status_code == 422


def test_a_collection_with_aliases_is_not_deleted(world: World) -> None:
    for alias in ("shop", "b"):
        put(world, alias, "acme")
    refused = world.ask("DELETE /v1/collections/acme", "admin")
    assert refused.status_code == 409
    assert "'acme' has the alias b, shop; move or delete it first" in refused.json()["detail"]
    by_alias = world.ask("DELETE /v1/collections/shop", "admin")
    assert by_alias.status_code == 409
    assert "'shop' is an alias of 'acme'" in by_alias.json()["detail"]
    for alias in ("shop", "b"):
        world.ask(f"DELETE /v1/aliases/{alias}", "admin")
    assert world.ask("DELETE /v1/collections/acme", "admin").status_code == 204


def test_only_admins_change_aliases(world: World) -> None:
    for key in ("read", "write"):
        assert put(world, "shop", "acme", key).status_code == 403
    put(world, "shop", "acme")
    for key in ("read", "write"):
        assert world.ask("DELETE /v1/aliases/shop", key).status_code == 403
        assert alias_of(world, "shop", key) == "acme"


def test_an_alias_gives_a_key_nothing_more(world: World) -> None:
    """The keys `acme-…` may use collections called acme*."""
    put(world, "acme-of-others", "other")
    put(world, "shop", "acme")
    for what in ("", "/ids", "/images?id=x", "/thumbnail?id=x", "/export"):
        path = f"/v1/collections/acme-of-others{what}"
        assert world.ask(f"GET {path}", "acme-read").status_code == 404, what
    for what in ("search", "count", "rows", "recall"):
        path = f"/v1/collections/acme-of-others/{what}"
        assert world.ask(f"POST {path}", "acme-read", json={"id": "x"}).status_code == 404, what
    vectors = {"vectors": [{"id": "x", "values": [1, 0, 0, 0]}]}
    path = "/v1/collections/acme-of-others"
    assert world.ask(f"POST {path}/vectors", "acme-write", json=vectors).status_code == 404
    job = {"source": {"type": "folder", "path": "/photos"}}
    assert world.ask(f"POST {path}/jobs", "acme-write", json=job).status_code == 404
    assert world.ask("DELETE /v1/collections/acme-of-others", "acme-admin").status_code == 404
    assert alias_of(world, "acme-of-others", "acme-read") == 404
    listed = world.ask("GET /v1/aliases", "acme-read").json()["aliases"]
    assert [alias["name"] for alias in listed] == ["shop"]
    # An alias of a collection that the key may use, whatever the alias is called.
    assert world.ask("GET /v1/collections/shop", "acme-read").json()["name"] == "acme"
    assert alias_of(world, "shop", "acme-read") == "acme"


def test_a_limited_admin_changes_aliases_of_its_own_alone(world: World) -> None:
    put(world, "acme-of-others", "other")
    put(world, "shop", "acme")
    assert put(world, "acme-new", "other", "acme-admin").status_code == 404
    assert put(world, "new", "acme", "acme-admin").status_code == 403
    assert put(world, "acme-of-others", "acme", "acme-admin").status_code == 409
    assert world.ask("DELETE /v1/aliases/acme-of-others", "acme-admin").status_code == 404
    assert world.ask("DELETE /v1/aliases/shop", "acme-admin").status_code == 403
    assert put(world, "acme-new", "acme", "acme-admin").status_code == 201
    assert world.ask("DELETE /v1/aliases/acme-new", "acme-admin").status_code == 204
    assert (alias_of(world, "acme-of-others"), alias_of(world, "shop")) == ("other", "acme")


def test_jobs_are_listed_by_an_alias(world: World) -> None:
    put(world, "shop", "acme")
    jobs = world.ask("GET /v1/jobs?collection=shop", "read").json()["jobs"]
    assert [job["collection"] for job in jobs] == ["acme"]
    assert world.ask("GET /v1/jobs?collection=none", "read").json()["jobs"] == []


# Races


def fill(client: Client, name: str, count: int = 5) -> None:
    client.create_collection(name, model="m", dim=DIM)
    values = np.eye(DIM).tolist()
    client.upsert(name, [{"id": f"{name}/{n}", "values": values[n]} for n in range(count)])


class Searchers:
    """Threads that search an alias until the end, and check each answer by itself."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self._url, self._end = url, threading.Event()
        self.problems: list[str] = []
        self.seen: set[str] = set()
        self._threads = [
            threading.Thread(target=self._run, args=(search,))
            for search in (self._single, self._batch) * (threads // 2)
        ]

    def __enter__(self) -> "Searchers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self, search: Callable[[Client], list[str]]) -> None:
        with Client(self._url, retries=0) as client:
            while not self._end.is_set():
                try:
                    owners = {match.partition("/")[0] for match in search(client)}
                except Exception as error:
                    self.problems.append(repr(error))
                    return
                if len(owners) != 1:
                    self.problems.append(f"an answer of {sorted(owners)}")
                self.seen |= owners

    def _single(self, client: Client) -> list[str]:
        matches = client.search("live", vector=[1.0] * DIM, top_k=50).matches
        assert len(matches) == 5
        return [match.id for match in matches]

    def _batch(self, client: Client) -> list[str]:
        results = client.search_many("live", [{"vector": [1.0] * DIM}] * 8)
        return [match.id for result in results for match in result.matches]  # type: ignore[union-attr]


def test_no_answer_mixes_collections_while_an_alias_is_moved() -> None:
    with MemoryService() as service, service.client() as client:
        for name in ("blue", "green"):
            fill(client, name)
        client.set_alias("live", "blue")
        with Searchers(service.url) as searchers:
            for n in range(60):
                client.set_alias("live", ("green", "blue")[n % 2])
                assert client.collection("live").name == ("green", "blue")[n % 2]
        assert searchers.problems == []
        assert searchers.seen == {"blue", "green"}


def test_a_collection_that_is_deleted_after_its_alias_was_moved_fails_no_search() -> None:
    """Another gateway has moved the alias, so that this one still knows the old collection."""
    with MemoryService() as service, service.client() as client:
        fill(client, "blue")
        fill(client, "green")
        client.set_alias("live", "blue")
        assert client.search("live", id="blue/1").matches
        catalogue, store = service.parts.catalogue, service.parts.store
        old = catalogue.find("blue")
        assert old
        catalogue.set_alias(Alias(name="live", collection="green", changed_at=0.0))
        assert catalogue.remove(old, unless_aliased=True)
        store.drop(old)
        best = client.search("live", vector=[1.0] * DIM).matches
        assert {match.id.partition("/")[0] for match in best} == {"green"}


def test_everything_works_by_an_alias(tmp_path: Path) -> None:
    with MemoryService() as service, service.client() as client:
        fill(client, "blue")
        client.set_alias("live", "blue")
        assert client.alias("live").collection == "blue"
        assert [alias.name for alias in client.aliases()] == ["live"]
        assert client.count("live") == 5
        assert sorted(client.iter_ids("live")) == [f"blue/{n}" for n in range(5)]
        assert client.image("live", "blue/1").id == "blue/1"
        client.upsert("live", [{"id": "blue/6", "values": [1.0] * DIM}])
        client.delete_image("live", "blue/6")
        assert client.delete("live", filter={"id": "blue/4"}) == 1
        assert client.export_images("live", tmp_path / "x.jsonl").images == 4
        assert client.import_collection(
            None, client.export_collection("live", tmp_path / "x.parquet")
        )
        client.create_collection("photos")
        client.set_alias("live", "photos")
        job = client.index("live", Path(__file__).parents[2] / "clipfleet/samples/music", wait=True)
        assert (job.collection, client.count("photos")) == ("photos", job.done)
        assert client.search("live", text="a guitar").matches
        assert [listed.id for listed in client.jobs(collection="live")] == [job.id]
        with pytest.raises(ProblemError, match="is an alias"):
            client.create_collection("live")
        client.delete_alias("live")
        with pytest.raises(NotFound):
            client.count("live")


def test_an_export_by_an_alias_goes_on_with_the_collection_it_began_with(tmp_path: Path) -> None:
    with MemoryService() as service, service.client() as client:
        fill(client, "blue")
        fill(client, "green")
        client.set_alias("live", "blue")

        def move(*_: Any) -> None:
            client.set_alias("live", "green")

        client.export_images("live", tmp_path / "x.jsonl", progress=move)
        assert "green" not in (tmp_path / "x.jsonl").read_text()


def test_an_alias_that_takes_the_name_meanwhile_leaves_no_collection_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    world = World(tmp_path, {"store": store})
    catalogue = world.parts.catalogue

    def add_late(self: MemoryCatalogue, collection: Collection) -> Collection:
        monkeypatch.undo()
        self.set_alias(Alias(name=collection.name, collection="acme", changed_at=0.0))
        return self.add(collection)

    monkeypatch.setattr(MemoryCatalogue, "add", add_late)
    body = {"metric": "dot", "model": "m"}
    assert world.ask("PUT /v1/collections/new", "admin", json=body).status_code == 409
    assert store.others(catalogue.all()) == []
    with pytest.raises(Conflict):
        catalogue.add(Collection.new("new", metric="dot", model="m", dim=4, fields={}))
