"""Creating and deleting a collection while Redis and the store disagree, or the store is
unavailable."""

from pathlib import Path

import pytest

from clipfleet.common.collection import Collection
from clipfleet.common.store import StoreUnavailable
from clipfleet.testing import MemoryStore
from support.gateway_harness import World


class Store(MemoryStore):
    away = False

    def drop(self, collection: Collection) -> None:
        if self.away:
            raise StoreUnavailable("the store is away")
        super().drop(collection)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def world(tmp_path: Path, store: Store) -> World:
    return World(tmp_path, {"store": store})


def test_put_makes_the_collection_of_a_name_that_has_none(world: World, store: Store) -> None:
    """Redis lost the record that the collection was deleted."""
    known = world.parts.catalogue.find("acme")
    assert known
    store.drop(known)
    path, body = "/v1/collections/acme", {"metric": "dot", "model": "m"}
    assert world.ask(f"GET {path}", "admin").status_code == 404
    assert world.ask(f"PUT {path}", "admin", json={**body, "metric": "cosine"}).status_code == 409
    created = world.ask(f"PUT {path}", "admin", json=body)
    assert (created.status_code, created.json()["count"]) == (201, 0)
    again = world.ask(f"PUT {path}", "admin", json=body)
    assert (again.status_code, again.json()["count"]) == (200, 0)
    assert world.parts.catalogue.find("acme") == known


def test_a_deleted_collection_is_gone_at_once_and_dropped_when_the_store_is_back(
    world: World, store: Store
) -> None:
    known = world.parts.catalogue.find("acme")
    assert known
    store.away = True
    assert world.ask("DELETE /v1/collections/acme", "admin").status_code == 204
    assert world.ask("GET /v1/collections/acme", "admin").status_code == 404
    assert store.missing([known]) == []
    store.away = False
    world.app.state.gateway.reconciler.round()
    assert store.missing([known]) == [known]
    assert world.parts.catalogue.to_drop() == []


def test_a_deleted_collection_ends_its_jobs(world: World) -> None:
    world.add("third")
    assert world.ask("DELETE /v1/collections/third", "admin").status_code == 204
    job = world.parts.ledger.job("job-third")
    assert (job.state, job.error) == ("cancelled", "the collection was deleted")
    assert world.parts.ledger.job("job-other").state == "queued"
