"""Reconciling the collection names in Redis with the collections in a store."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from clipfleet.api.dispatch.reconciler import GRACE_PERIOD_S, Reconciler
from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Unavailable
from clipfleet.common.imaging.thumbnails import thumbnail_key
from clipfleet.common.ledger.catalogue import RedisCatalogue
from clipfleet.common.store import Store
from support.ledgers import dumped, restore
from support.stores import a_collection, a_record

KEY = "0" * 32


class World:
    def __init__(self, client: "redis.Redis", store: Store, blobs: Blobs) -> None:
        self.client, self.store, self.blobs = client, store, blobs
        self.catalogue = RedisCatalogue(client)
        self.reconciler = Reconciler(self.catalogue, store, blobs)
        self.began: list[Collection] = []

    def named(self, name: str, age_s: float = GRACE_PERIOD_S + 60) -> Collection:
        """Add a collection with a name, one image and its thumbnail."""
        collection = self.unnamed(name, age_s)
        assert self.catalogue.add(collection) == collection
        return collection

    def unnamed(self, name: str, age_s: float = GRACE_PERIOD_S + 60, images: int = 1) -> Collection:
        new = a_collection()
        collection = new.model_copy(
            update={"name": name, "created_at": round(new.created_at - age_s, 3)}
        )
        self.began.append(collection)
        self.store.create(collection)
        if images:
            self.store.upsert(collection, [a_record("a", 1)])
            self.blobs.put(thumbnail_key(collection, KEY), io.BytesIO(b"small"))
        return collection

    def is_in_the_store(self, collection: Collection) -> bool:
        return self.store.missing([collection]) == []

    def has_thumbnails(self, collection: Collection) -> bool:
        try:
            return bool(self.blobs.get(thumbnail_key(collection, KEY), 100))
        except BlobGone:
            return False


@pytest.fixture
def world(client: "redis.Redis", store: Store, tmp_path: Path) -> Iterator[World]:
    world = World(client, store, Blobs(f"file://{tmp_path}/blobs"))
    yield world
    for collection in world.began:
        store.drop(collection)


def test_collections_that_agree_are_left_alone(world: World) -> None:
    old, young = world.named("old"), world.named("young", 0)
    for _ in range(3):
        world.reconciler.round()
    assert world.catalogue.all() == [old, young]
    assert world.store.count(old) == world.store.count(young) == 1
    assert world.has_thumbnails(old)


def test_a_deletion_that_redis_forgot_is_carried_out(world: World) -> None:
    collection = world.named("photos")
    on_disk = dumped(world.client)
    world.catalogue.remove(collection)
    world.reconciler.drop(collection)
    restore(world.client, on_disk)
    world.reconciler.round()
    assert world.catalogue.find("photos") == collection, "the store may be starting"
    world.reconciler.round()
    assert world.catalogue.find("photos") is None
    world.reconciler.round()
    assert not world.has_thumbnails(collection)
    assert world.catalogue.to_drop() == []


def test_a_deletion_that_was_broken_off_goes_on(world: World) -> None:
    """The gateway ended after the name was freed."""
    collection, other = world.named("photos"), world.named("others")
    assert world.catalogue.remove(collection)
    assert world.catalogue.to_drop() == [collection]
    world.reconciler.round()
    assert not world.is_in_the_store(collection)
    assert not world.has_thumbnails(collection)
    assert world.catalogue.to_drop() == []
    assert world.catalogue.all() == [other]
    assert world.is_in_the_store(other)


def test_a_collection_whose_making_redis_forgot_has_its_name_again(world: World) -> None:
    collection = world.unnamed("photos")
    world.reconciler.round()
    assert world.catalogue.find("photos") == collection
    assert world.store.count(collection) == 1


def test_a_collection_that_is_being_made_is_left_to_its_maker(world: World) -> None:
    young = world.unnamed("photos", age_s=10)
    world.reconciler.round()
    assert world.catalogue.find("photos") is None
    assert world.is_in_the_store(young)


@pytest.mark.parametrize("images", [0, 1])
def test_of_two_with_one_name_the_empty_one_goes_and_the_full_one_is_told_of(
    world: World, images: int, caplog: pytest.LogCaptureFixture
) -> None:
    today = world.named("photos")
    other = world.unnamed("photos", images=images)
    world.reconciler.round()
    assert world.catalogue.find("photos") == today
    assert world.store.count(today) == 1
    assert world.is_in_the_store(other) == bool(images)
    assert (other.generation in caplog.text) == bool(images)


def test_a_collection_deleted_during_a_round_gets_no_name(world: World) -> None:
    collection = world.unnamed("photos")

    class Racing(Reconciler):
        looks = 0

        def _catalogued(self) -> list[Collection]:
            self.looks += 1
            if self.looks == 2:
                world.store.drop(collection)
            return super()._catalogued()

    Racing(world.catalogue, world.store, world.blobs).round()
    assert world.catalogue.find("photos") is None


def test_what_another_release_wrote_is_left_alone(world: World) -> None:
    collection = world.named("photos")
    raw = collection.model_dump_json().replace('"v":1', '"v":2')
    world.client.hset("clipfleet:collections", "photos", raw)
    for _ in range(3):
        world.reconciler.round()
    assert world.is_in_the_store(collection)
    assert world.client.hget("clipfleet:collections", "photos") == raw.encode()


def test_a_store_that_is_away_changes_nothing(world: World) -> None:
    collection = world.named("photos")

    class Away(World):
        def missing(self, *_: object) -> list[Collection]:
            raise Unavailable("the store is away")

        others = missing

    away = Away(world.client, world.store, world.blobs)
    reconciler = Reconciler(world.catalogue, away, world.blobs)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(Unavailable):
            reconciler.round()
    assert world.catalogue.all() == [collection]
