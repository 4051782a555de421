"""The records of migrations, in memory and on Redis: the same calls have the same answers."""

import pytest
import redis

from clipfleet.api.dispatch.reconciler import Reconciler
from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict
from clipfleet.common.ledger import Ledger
from clipfleet.common.ledger.catalogue import (
    Catalogue,
    Deletion,
    MemoryCatalogue,
    RedisCatalogue,
    both_generations,
    hidden_generations,
    to_delete_from,
)
from clipfleet.common.ledger.migrations import Migration, Pass
from clipfleet.common.ledger.unreadable import Lost, MemoryUnreadable, RedisUnreadable, Unreadable
from clipfleet.common.store.memory import MemoryStore
from support.ledgers import Clock, claimed, dumped, planned, restore

NOW = 1_000.0


def collection(model: str, name: str = "photos") -> Collection:
    return Collection.new(name, metric="cosine", model=model, dim=8, fields={})


@pytest.fixture(params=["memory", "redis"])
def catalogue(request: pytest.FixtureRequest) -> Catalogue:
    if request.param == "memory":
        return MemoryCatalogue()
    return RedisCatalogue(request.getfixturevalue("client"))


@pytest.fixture(params=["memory", "redis"])
def unreadable(request: pytest.FixtureRequest) -> Unreadable:
    if request.param == "memory":
        return MemoryUnreadable()
    return RedisUnreadable(request.getfixturevalue("client"))


def begun(catalogue: Catalogue) -> Migration:
    old, new = collection("a"), collection("b")
    catalogue.add(old)
    migration = Migration.begin(old, new, NOW, "key", None)
    assert catalogue.change_migration(None, migration)
    return migration


def now_in(catalogue: Catalogue) -> Migration:
    migration = catalogue.migration("photos")
    assert migration is not None
    return migration


def change(catalogue: Catalogue, step: str) -> Migration:
    before = now_in(catalogue)
    assert catalogue.change_migration(before, getattr(before, step)(NOW))
    return now_in(catalogue)


def test_a_name_changes_its_generation_together_with_the_record(catalogue: Catalogue) -> None:
    migration = begun(catalogue)
    old, new = migration.old, migration.new
    assert now_in(catalogue) == migration
    assert (catalogue.find("photos"), catalogue.all()) == (old, [old])
    assert hidden_generations(catalogue) == [new]
    assert catalogue.generation("photos", new.generation) == new
    assert catalogue.generation("photos", old.generation) == old
    assert catalogue.generation("photos", "none") is None
    assert catalogue.generation("none", new.generation) is None
    swapped = change(catalogue, "swapped")
    assert (swapped.state, swapped.revision) == ("swapped", 1)
    assert (catalogue.find("photos"), catalogue.resolve("photos")) == (new, new)
    assert hidden_generations(catalogue) == [old]
    assert both_generations(catalogue, new) == [new, old]
    assert to_delete_from(catalogue, new) == [new, old, new]
    change(catalogue, "rolled_back")
    assert catalogue.find("photos") == old
    change(catalogue, "swapped")
    assert catalogue.to_drop() == []
    assert change(catalogue, "finished").state == "finished"
    assert (catalogue.find("photos"), catalogue.to_drop()) == (new, [old])
    assert hidden_generations(catalogue) == []
    assert catalogue.generation("photos", old.generation) is None
    assert to_delete_from(catalogue, new) == [new]


def test_of_two_changes_one_counts(catalogue: Catalogue) -> None:
    before = begun(catalogue)
    assert catalogue.change_migration(before, before.swapped(NOW))
    assert not catalogue.change_migration(before, before.cancelled(NOW))
    assert (now_in(catalogue).state, catalogue.to_drop()) == ("swapped", [])
    another = Migration.begin(before.new, collection("c"), NOW, "", None)
    assert not catalogue.change_migration(None, another), "one is not over"
    assert not catalogue.change_migration(another, another), "it never began"
    change(catalogue, "finished")
    assert catalogue.change_migration(None, another)
    assert catalogue.find("photos") == before.new
    assert now_in(catalogue) == another


def test_none_begins_for_a_name_that_stands_for_another_generation(catalogue: Catalogue) -> None:
    migration = Migration.begin(collection("a"), collection("b"), NOW, "", None)
    assert not catalogue.change_migration(None, migration), "there is no such collection"
    catalogue.add(collection("c"))
    assert not catalogue.change_migration(None, migration)
    assert catalogue.migrations() == []


def test_a_cancelled_one_drops_the_new_generation(catalogue: Catalogue) -> None:
    migration = begun(catalogue)
    change(catalogue, "cancelled")
    assert (catalogue.find("photos"), catalogue.to_drop()) == (migration.old, [migration.new])
    catalogue.record_dropped(migration.new)
    assert catalogue.to_drop() == []


@pytest.mark.parametrize("step", ["", "swapped"])
def test_a_collection_is_removed_with_both_generations(catalogue: Catalogue, step: str) -> None:
    migration = begun(catalogue)
    if step:
        migration = change(catalogue, step)
    assert not catalogue.remove(migration.other), "the name stands for the other one"
    assert catalogue.remove(migration.current)
    dropped = sorted(catalogue.to_drop(), key=lambda known: known.model)
    assert dropped == [migration.old, migration.new]
    assert (catalogue.find("photos"), catalogue.migrations()) == (None, [])


def test_a_deletion_is_recorded_for_both_generations(catalogue: Catalogue) -> None:
    migration = begun(catalogue)
    deletion = Deletion(namespace="n", pk="0" * 32)
    catalogue.record_deletion(migration.old, deletion)
    assert catalogue.deletions(migration.old, 0) == [deletion]
    assert catalogue.deletions(migration.new, 0) == [deletion]


def test_states_allow_what_makes_sense() -> None:
    begin = Migration.begin(collection("a"), collection("b"), NOW, "", None)
    with_jobs = begin.model_copy(update={"forward": Pass(job="j"), "backward": Pass(job="k")})
    assert with_jobs.jobs == ["j", "k"]
    assert with_jobs.paused(NOW).jobs == with_jobs.cancelled(NOW).jobs == []
    assert with_jobs.swapped(NOW).jobs == ["j", "k"]
    swapped = begin.swapped(NOW)
    assert swapped.swapped(NOW) is swapped
    assert swapped.rolled_back(NOW).rolled_back(NOW).state == "building"
    for wrong in (begin.rolled_back, begin.finished, swapped.paused, swapped.cancelled):
        with pytest.raises(Conflict):
            wrong(NOW)
    over = begin.cancelled(NOW)
    assert over.cancelled(NOW) is over
    for wrong in (over.paused, over.resumed, over.swapped, over.rolled_back, over.finished):
        with pytest.raises(Conflict):
            wrong(NOW)


def test_unreadable_images_are_listed_in_pages(unreadable: Unreadable) -> None:
    images = [
        Lost(pk=f"{n:032x}", id=str(n), namespace="n", uri=f"/{n}", reason="gone", indexed_at=n + 1)
        for n in range(5)
    ]
    unreadable.add("one", images[3:])
    unreadable.add("one", images[:4])
    unreadable.add("one", [])
    unreadable.add("two", images[:1])
    assert (unreadable.count("one"), unreadable.count("two"), unreadable.count("none")) == (5, 1, 0)
    assert unreadable.page("one", "", 2) == images[:2]
    assert unreadable.page("one", images[1].pk, 9) == images[2:]
    assert unreadable.known("one", [images[4].pk, "f" * 32]) == {images[4].pk: 5}
    assert unreadable.known("one", []) == {}
    unreadable.forget("one", [images[1].pk])
    unreadable.forget("one", [])
    assert unreadable.page("one", "", 9) == [images[0], *images[2:]]
    unreadable.forget("one")
    assert (unreadable.count("one"), unreadable.page("one", "", 9)) == (0, [])
    assert unreadable.count("two") == 1


def test_chunks_of_low_jobs_come_after_all_others(ledger: Ledger, clock: Clock) -> None:
    planned(ledger, *((f"low-{n}",) for n in range(3)), job="low", is_low=True)
    clock.now += 1
    planned(ledger, *((f"usual-{n}",) for n in range(4)), job="usual")
    planned(ledger, ("k",), job="of-a-key", key="key")
    order = [claimed(ledger).job_id for _ in range(8)]
    assert sorted(order[:5]) == ["of-a-key", *4 * ["usual"]]
    assert order[5:] == 3 * ["low"]


def test_the_reconciler_leaves_the_hidden_generation_alone(client: "redis.Redis") -> None:
    catalogue, store = RedisCatalogue(client), MemoryStore()
    old, new = (collection(model).model_copy(update={"created_at": 1.0}) for model in ("a", "b"))
    for generation in (old, new):
        store.create(generation)
    catalogue.add(old)
    assert catalogue.change_migration(None, Migration.begin(old, new, NOW, "", None))
    reconciler = Reconciler(catalogue, store, Blobs("memory://clipfleet-migrations"))
    for _ in range(3):
        reconciler.round()
    assert store.missing([old, new]) == []
    assert catalogue.all() == [old]
    change(catalogue, "swapped")
    store.drop(old)
    for _ in range(3):
        reconciler.round()
    assert (now_in(catalogue).state, catalogue.find("photos")) == ("finished", new)


def test_a_migration_that_lost_its_new_generation_fails(client: "redis.Redis") -> None:
    catalogue, store = RedisCatalogue(client), MemoryStore()
    migration = begun(catalogue)
    store.create(migration.old)
    reconciler = Reconciler(catalogue, store, Blobs("memory://clipfleet-migrations"))
    reconciler.round()
    assert now_in(catalogue).state == "building", "the store may be starting"
    reconciler.round()
    assert now_in(catalogue).state == "failed"
    assert "has lost the images of the model 'b'" in now_in(catalogue).error


def test_a_swap_that_redis_forgot_can_be_repeated(client: "redis.Redis") -> None:
    catalogue = RedisCatalogue(client)
    migration = begun(catalogue)
    on_disk = dumped(client)
    change(catalogue, "swapped")
    restore(client, on_disk)
    assert (catalogue.find("photos"), now_in(catalogue)) == (migration.old, migration)
    assert change(catalogue, "swapped").current == migration.new


@pytest.mark.parametrize("swapped", [False, True])
def test_a_name_whose_generation_is_lost_goes_to_the_other_one(
    catalogue: Catalogue, *, swapped: bool
) -> None:
    begun(catalogue)
    if swapped:
        change(catalogue, "swapped")
    migration, store = now_in(catalogue), MemoryStore()
    store.create(migration.other)  # as with a backup of Redis from before the swap
    reconciler = Reconciler(catalogue, store, Blobs("memory://clipfleet-migrations"))
    for _ in range(3):
        reconciler.round()
    after = now_in(catalogue)
    assert after.state == ("failed" if swapped else "finished")
    assert catalogue.find("photos") == after.current == migration.other
    assert store.missing([migration.other]) == []
    assert catalogue.to_drop() == []
