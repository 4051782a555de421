"""Contract of the catalogue, the fleet and the list of unfinished uploads.

Each test runs in memory and on Redis.
"""

import time

import pytest
import redis

from clipfleet.common.collection import Alias, Collection
from clipfleet.common.errors import Conflict, NotFound, TooLarge
from clipfleet.common.ledger.catalogue import (
    Catalogue,
    Deletion,
    MemoryCatalogue,
    RedisCatalogue,
    require,
)
from clipfleet.common.ledger.turns import write_in_turn
from clipfleet.common.ledger.unfinished import (
    MemoryUnfinished,
    OpenUpload,
    Received,
    RedisUnfinished,
    TooManyUploads,
    Unfinished,
    UploadRoom,
)
from clipfleet.common.queue.fleet import Fleet, MemoryFleet, RedisFleet, serving
from support.ledgers import Clock
from support.query_fleet import a_card


@pytest.fixture(params=["memory", "redis"])
def catalogue(request: pytest.FixtureRequest) -> Catalogue:
    if request.param == "memory":
        return MemoryCatalogue()
    return RedisCatalogue(request.getfixturevalue("client"))


@pytest.fixture(params=["memory", "redis"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    if request.param == "memory":
        return MemoryFleet()
    return RedisFleet(request.getfixturevalue("client"))


def test_deletions_are_kept_per_generation_since_a_time(catalogue: Catalogue) -> None:
    collection, other = catalogue.add(a_collection("one")), catalogue.add(a_collection("two"))
    begun = time.time()
    first = Deletion(namespace="n", pk="a" * 32)
    second = Deletion(namespace="n", filter={"$or": [{"label": "\u2028"}, {"year": 3}]})
    assert catalogue.deletions(collection, begun) == []
    catalogue.record_deletion(collection, first)
    catalogue.record_deletion(collection, second)
    assert catalogue.deletions(collection, begun) == [first, second]
    assert catalogue.deletions(collection, time.time() + 60) == []
    assert catalogue.deletions(other, begun) == []


def test_nothing_of_a_removed_collection_stays(client: "redis.Redis") -> None:
    catalogue = RedisCatalogue(client)
    collection = catalogue.add(a_collection())
    catalogue.record_write(collection)
    catalogue.record_deletion(collection, Deletion(namespace="n"))
    assert client.dbsize() == 3
    assert catalogue.remove(collection)
    assert catalogue.to_drop() == [collection]
    catalogue.record_dropped(collection)
    assert client.dbsize() == 0


def a_collection(name: str = "photos") -> Collection:
    return Collection.new(name, metric="cosine", model="m", dim=4, fields={"year": "int"})


def an_alias(name: str, collection: str) -> Alias:
    return Alias(name=name, collection=collection, changed_at=1.5)


def test_an_alias_stands_for_one_collection_at_a_time(catalogue: Catalogue) -> None:
    old, new = catalogue.add(a_collection("photos-1")), catalogue.add(a_collection("photos-2"))
    first, second = an_alias("photos", "photos-1"), an_alias("photos", "photos-2")
    assert catalogue.resolve("photos") is None
    assert catalogue.set_alias(first) is None
    assert (catalogue.resolve("photos"), catalogue.find("photos")) == (old, None)
    assert require(catalogue, "photos") == require(catalogue, "photos-1") == old
    assert catalogue.set_alias(second) == first
    assert (catalogue.resolve("photos"), catalogue.find_alias("photos")) == (new, second)
    assert catalogue.set_alias(an_alias("all", "photos-2")) is None
    assert [alias.name for alias in catalogue.aliases()] == ["all", "photos"]
    assert [catalogue.remove_alias("photos") for _ in range(2)] == [True, False]
    assert (catalogue.resolve("photos"), catalogue.find_alias("photos")) == (None, None)
    assert catalogue.all() == [old, new]


def test_no_name_is_an_alias_and_a_collection(catalogue: Catalogue) -> None:
    photos = catalogue.add(a_collection("photos"))
    catalogue.set_alias(an_alias("live", "photos"))
    for alias in (an_alias("photos", "photos"), an_alias("more", "live")):
        with pytest.raises(Conflict):
            catalogue.set_alias(alias)
    with pytest.raises(NotFound):
        catalogue.set_alias(an_alias("more", "none"))
    with pytest.raises(Conflict, match="is an alias"):
        catalogue.add(a_collection("live"))
    assert [alias.name for alias in catalogue.aliases()] == ["live"]
    assert catalogue.all() == [photos]


def test_a_collection_with_aliases_is_removed_only_by_force(catalogue: Catalogue) -> None:
    photos = catalogue.add(a_collection("photos"))
    for name in ("live", "all"):
        catalogue.set_alias(an_alias(name, "photos"))
    with pytest.raises(Conflict, match="'photos' has the alias all, live"):
        catalogue.remove(photos, unless_aliased=True)
    assert catalogue.resolve("live") == photos
    assert catalogue.remove(photos)
    assert catalogue.resolve("live") is None
    assert catalogue.to_drop() == [photos]
    again = catalogue.add(a_collection("photos"))
    assert catalogue.resolve("live") == again


def test_the_first_generation_to_take_a_name_keeps_it(catalogue: Catalogue) -> None:
    first, second = a_collection(), a_collection()
    assert catalogue.add(first) == first
    assert catalogue.add(second) == first
    assert catalogue.find("photos") == first
    assert not catalogue.remove(second)
    assert catalogue.remove(first)
    assert not catalogue.remove(first)
    assert catalogue.find("photos") is None


def test_collections_are_listed_by_name_and_unknown_ones_said_to_be(catalogue: Catalogue) -> None:
    for name in ("b", "a"):
        catalogue.add(a_collection(name))
    assert [collection.name for collection in catalogue.all()] == ["a", "b"]
    with pytest.raises(NotFound, match="there is no collection 'c'"):
        require(catalogue, "c")


def test_the_last_write_is_remembered_per_generation(catalogue: Catalogue) -> None:
    collection, other = a_collection(), a_collection()
    assert catalogue.seconds_since_write(collection) == float("inf")
    catalogue.record_write(collection)
    assert 0 <= catalogue.seconds_since_write(collection) < 60
    assert catalogue.seconds_since_write(other) == float("inf")


def test_rows_are_in_one_hand_at_a_time(catalogue: Catalogue) -> None:
    collection, other = a_collection(), a_collection()
    keys = [f"{n:032x}" for n in range(2_500)]
    assert catalogue.hold(collection, keys, "one", 60) == set()
    assert catalogue.hold(collection, keys[:3], "one", 60) == set()
    assert catalogue.hold(other, keys[:3], "two", 60) == set()
    assert catalogue.hold(collection, [*keys[2_498:], "f" * 32], "two", 60) == {*keys[2_498:]}
    assert catalogue.hold(collection, ["f" * 32], "one", 60) == {"f" * 32}
    catalogue.release(collection, keys, "two")
    assert catalogue.hold(collection, keys[:1], "two", 60) == {keys[0]}
    catalogue.release(collection, keys, "one")
    assert catalogue.hold(collection, keys, "two", 0) == set()
    assert catalogue.hold(collection, keys, "three", 60) == set()  # their time is over


def test_what_others_have_in_hand_is_written_afterwards(catalogue: Catalogue) -> None:
    collection, keys = a_collection(), ["a" * 32, "b" * 32]
    written = list[list[str]]()

    def write(free: list[str]) -> None:
        written.append(free)
        assert catalogue.hold(collection, free, "another", 60) == {*free}
        catalogue.release(collection, keys, "other")

    catalogue.hold(collection, keys[:1], "other", 60)
    write_in_turn(catalogue, collection, keys, write)
    assert written == [keys[1:], keys[:1]]
    assert catalogue.hold(collection, keys, "another", 60) == set()


def test_a_worker_is_there_until_it_leaves(fleet: Fleet) -> None:
    fleet.announce(a_card("w1"))
    fleet.announce(a_card("w2", "other"))
    assert [card.id for card in serving(fleet.alive(), "query", "m")] == ["w1"]
    assert serving(fleet.alive(), "ingest", "m") == []
    fleet.deregister("w1")
    assert [card.id for card in fleet.alive()] == ["w2"]


def test_a_worker_whose_announcement_expired_is_gone(client: "redis.Redis") -> None:
    fleet = RedisFleet(client)
    fleet.announce(a_card("w9"))
    client.delete("clipfleet:worker:w9")
    assert "w9" not in [card.id for card in fleet.alive()]
    assert not client.sismember("clipfleet:workers", "w9")


def test_who_ended_itself_left_word_why(fleet: Fleet) -> None:
    fleet.record_exit_reason("m", "the device is broken")
    assert fleet.last_exit_reason("m") == "the device is broken"
    assert fleet.last_exit_reason("another") == ""


def test_planners_are_seen(fleet: Fleet) -> None:
    assert fleet.planners() == []
    fleet.announce_planner("p1")
    assert fleet.planners() == ["p1"]


def test_a_card_of_another_version_hides_nobody_else(client: "redis.Redis") -> None:
    fleet = RedisFleet(client)
    fleet.announce(a_card("ours"))
    client.sadd("clipfleet:workers", "theirs")
    client.set("clipfleet:worker:theirs", '{"v": 2, "id": "theirs"}')
    assert [card.id for card in fleet.alive()] == ["ours"]


@pytest.fixture(params=["memory", "redis"])
def unfinished(request: pytest.FixtureRequest, clock: Clock) -> Unfinished:
    if request.param == "memory":
        return MemoryUnfinished(clock)
    return RedisUnfinished(request.getfixturevalue("client"), clock)


def test_uploads_are_unfinished_until_they_end(unfinished: Unfinished, clock: Clock) -> None:
    for job_id in ("first", "second", "third"):
        unfinished.begin(job_id)
        clock.now += 10
    unfinished.end("second")
    unfinished.end("never begun")
    assert unfinished.older(0, 10) == ["first", "third"]
    assert unfinished.older(0, 1) == ["first"]
    assert unfinished.older(30, 10) == ["first"]
    assert unfinished.older(31, 10) == []


ROOM = UploadRoom(uploads=4, images=3, bytes=100)
A, B, C, D = (digit * 32 for digit in "abcd")


def an_upload(name: str, **fields: str) -> OpenUpload:
    return OpenUpload(
        id=name, collection="c", generation="g", model="m", namespace="n", created_at=1.0,
        **fields,
    )  # fmt: skip


def test_an_open_upload_is_found_again_by_its_callers_key(unfinished: Unfinished) -> None:
    first = unfinished.open(an_upload("first", key="k"), ROOM)
    assert unfinished.open(an_upload("second", key="k"), ROOM) == first
    assert unfinished.open(an_upload("other", key="k", caller="x"), ROOM).id == "other"
    assert unfinished.find("first") == first
    with pytest.raises(Conflict, match="on_existing"):
        unfinished.open(an_upload("third", key="k", on_existing="replace"), ROOM)
    unfinished.close("first")
    assert unfinished.open(an_upload("third", key="k"), ROOM).id == "third"
    unfinished.end("first")
    assert unfinished.open(an_upload("fourth", key="k"), ROOM).id == "third"
    with pytest.raises(NotFound, match="there is no open upload 'first'"):
        unfinished.find("first")
    assert unfinished.older(-1, 10) == ["other", "third"]


def test_an_open_upload_keeps_what_it_has_got(unfinished: Unfinished) -> None:
    unfinished.open(an_upload("u"), ROOM)
    assert unfinished.received("u") == Received()
    unfinished.add("u", "one", {A: "11", B: "22"}, 40, ROOM)
    assert unfinished.digests("u", [B, C]) == ["22", ""]
    assert unfinished.received("u") == Received(2, 40)
    unfinished.add("u", "two", {B: "33"}, 5, ROOM)
    assert unfinished.received("u") == Received(2, 45, resent=True)
    assert unfinished.parts("u") == ["one", "two"]
    with pytest.raises(TooLarge, match="4 images; the limit is 3"):
        unfinished.add("u", "three", {C: "44", D: "55"}, 1, ROOM)
    with pytest.raises(TooLarge, match="101 bytes; the limit is 100"):
        unfinished.add("u", "three", {C: "44"}, 56, ROOM)
    assert unfinished.parts("u") == ["one", "two"]
    unfinished.close("u")
    for name in ("u", "never"):
        with pytest.raises(NotFound):
            unfinished.add(name, "four", {C: "44"}, 1, ROOM)
    unfinished.end("u")
    assert unfinished.received("u") == Received()
    assert unfinished.digests("u", [A]) == [""]


def test_callers_share_the_open_uploads(unfinished: Unfinished) -> None:
    for name in ("one", "two"):
        unfinished.open(an_upload(name, caller="x"), ROOM)
    with pytest.raises(TooManyUploads, match="2 of them of this key"):
        unfinished.open(an_upload("three", caller="x"), ROOM)
    unfinished.open(an_upload("three", caller="y"), ROOM)
    unfinished.end("one")
    unfinished.open(an_upload("four", caller="x"), ROOM)
