"""A job's whole life in the ledger (keys, lists, retries, removal), on both implementations."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import redis

from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.ledger import (
    KEEP_IDEMPOTENCY_S,
    Failure,
    Item,
    JobRoom,
    Ledger,
    Outcome,
    TooManyJobs,
    brief,
)
from clipfleet.common.ledger.notes import MAX_NOTES, left_out, remarks
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.shares import Owner
from support.ledgers import (
    LEASE_S,
    MODEL,
    Clock,
    a_job,
    claimed,
    ended,
    failure,
    items,
    next_claim,
    planned,
    traces,
)


def test_what_was_left_out_is_counted_with_the_cursor_behind_it(ledger: Ledger) -> None:
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    assert ledger.job("j").notes == {}
    assert ledger.plan("j", lease.token, items("a"), "", "1", {".heic": 2, "changed": 1})
    assert ledger.plan("j", lease.token, items("a"), "", "1", {".heic": 2}) is None
    assert ledger.plan("j", lease.token, items("b"), "1", "2")
    assert ledger.plan("j", lease.token, items("c"), "2", "3", {".mov": 1, "changed": 3})
    many = {f".{n}": 1 for n in range(2 * MAX_NOTES)}
    assert ledger.finish_planning("j", lease.token, "3", "", {".heic": 5})
    assert ledger.job("j").notes == {".heic": 7, ".mov": 1, "changed": 4}
    assert left_out(ledger.job("j").notes) == {".heic": 7, ".mov": 1}
    assert remarks(ledger.job("j").notes) == {"changed": 4}
    ledger.create(a_job("k"))
    lease = ledger.lease("k", "p", 30)
    assert lease
    assert ledger.finish_planning("k", lease.token, "", "", many)
    notes = ledger.job("k").notes
    assert sum(notes.values()) == 2 * MAX_NOTES
    assert len(notes) <= MAX_NOTES + 1
    assert left_out(notes)["*"] == MAX_NOTES


def test_a_failure_keeps_what_is_needed_to_try_again(ledger: Ledger) -> None:
    item = Item(
        id="a\nb", uri="file:///a", read="file:/a", label="é", metadata={"year": 1999, "k": [None]}
    )
    ledger.create(a_job())
    lease = ledger.lease("j", "p", 30)
    assert lease
    ledger.plan("j", lease.token, [item], "", "1")
    ledger.finish_planning("j", lease.token, "1")
    failed = Failure.of(item, "read", "it is away", 2)
    ledger.mark(claimed(ledger), Outcome(failures=(failed,)))
    (kept,) = ledger.failures("j")
    assert kept == failed
    assert kept.item() == item


def test_the_job_and_its_retry_know_of_each_other(ledger: Ledger) -> None:
    ended(ledger)
    before = ledger.job("j")
    retry = ledger.create(a_job("r", retry_of="j"))
    assert (retry.id, retry.new.retry_of, retry.state) == ("r", "j", "queued")
    assert ledger.job("j") == replace(before, retried_by="r")


def test_while_a_retry_goes_on_there_is_no_second_one(ledger: Ledger) -> None:
    ended(ledger)
    ledger.create(a_job("r", retry_of="j"))
    assert ledger.create(a_job("again", retry_of="j")).id == "r"
    ledger.cancel("r")
    assert ledger.create(a_job("third", retry_of="j")).id == "third"
    assert ledger.job("j").retried_by == "third"


def test_what_cannot_be_retried_is_said(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="no job 'unknown'"):
        ledger.create(a_job("r", retry_of="unknown"), "key")
    ledger.create(a_job())
    with pytest.raises(Conflict, match="has not ended"):
        ledger.create(a_job("r", retry_of="j"), "key")
    ledger.cancel("j")
    with pytest.raises(Conflict, match="no failures"):
        ledger.create(a_job("r", retry_of="j"), "key")
    assert [job.id for job in ledger.jobs()] == ["j"]
    assert ledger.find_by_idempotency_key("key") is None


def test_a_job_whose_removal_has_begun_is_listed_until_it_is_removed(
    ledger: Ledger, clock: Clock
) -> None:
    with pytest.raises(NotFound):
        ledger.begin_removal("j")
    ended(ledger)
    ledger.create(a_job("a"))
    assert ledger.begin_removal("j", "it is removed").state == "partial"
    clock.now += 1
    cancelled = ledger.begin_removal("a", "it is removed")
    assert (cancelled.state, cancelled.error) == ("cancelled", "it is removed")
    clock.now += 1
    ledger.begin_removal("j")
    assert (ledger.removals(9), ledger.removals(1)) == (["j", "a"], ["j"])
    with pytest.raises(NotFound):
        ledger.create(a_job("r", retry_of="j"))
    ledger.remove("j")
    assert ledger.removals(9) == ["a"]


def test_a_key_says_which_job_it_made(ledger: Ledger) -> None:
    assert ledger.find_by_idempotency_key("key") is None
    ledger.create(a_job(), "key")
    job = ledger.find_by_idempotency_key("key")
    assert job == ledger.job("j")
    ledger.remove("j")
    assert ledger.find_by_idempotency_key("key") is None
    assert ledger.create(a_job("k"), "key").id == "k"


def test_a_key_is_forgotten_after_a_day(client: "redis.Redis", clock: Clock) -> None:
    RedisLedger(client, clock).create(a_job(), "key")
    assert 0 < int(client.ttl("clipfleet:idempotency:key")) <= KEEP_IDEMPOTENCY_S == 24 * 3600


def test_jobs_are_listed_newest_first_by_collection_and_state(ledger: Ledger, clock: Clock) -> None:
    for n in range(6):
        clock.now += n % 2  # some in the same moment
        ledger.create(a_job(f"j{n}", "photos" if n % 2 else "maps"))
    ledger.cancel("j1")
    ledger.cancel("j4")

    def listed(*args: Any) -> list[str]:
        return [job.id for job in ledger.jobs(*args)]

    assert listed() == ["j5", "j4", "j3", "j2", "j1", "j0"]
    assert listed(2, 1) == ["j4", "j3"]
    assert listed(50, 0, "photos") == ["j5", "j3", "j1"]
    assert listed(50, 0, "photos", ("queued", "running")) == ["j5", "j3"]
    assert listed(1, 1, "", ("cancelled",)) == ["j1"]
    assert listed(50, 0, "none") == listed(50, 9) == listed(50, 0, "", ("failed",)) == []


def test_a_list_by_state_looks_further_than_one_page(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.common.ledger.redis.PAGE", 3)
    for n in range(9):
        clock.now += 1
        ledger.create(a_job(f"j{n}"))
        if n % 4 == 0:
            ledger.cancel(f"j{n}")
    pages = [ledger.jobs(1, offset, "", ("cancelled",)) for offset in range(4)]
    assert [[job.id for job in page] for page in pages] == [["j8"], ["j4"], ["j0"], []]


def test_a_list_of_some_collections_leaves_no_gaps(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.common.ledger.redis.PAGE", 3)
    for n in range(9):
        clock.now += 1
        ledger.create(a_job(f"j{n}", ("a", "b", "c")[n % 3]))
    ledger.cancel("j3")

    def listed(limit: int, offset: int, name: str = "", states: Any = ()) -> list[str]:
        jobs = ledger.jobs(
            limit, offset, name, states, sees=lambda collection: collection in ("a", "b")
        )
        return [job.id for job in jobs]

    assert [listed(2, offset) for offset in (0, 2, 4, 6)] == [
        ["j7", "j6"], ["j4", "j3"], ["j1", "j0"], [],
    ]  # fmt: skip
    assert listed(50, 0, "c") == []
    assert listed(50, 0, "", ("cancelled",)) == ["j3"]


def test_nothing_of_a_removed_job_is_left(ledger: Ledger, request: pytest.FixtureRequest) -> None:
    ended(ledger)
    ledger.create(a_job("r", retry_of="j"), "key")
    ledger.remove("r")
    assert ledger.job("j").retried_by == ""
    ledger.remove("j")
    assert not ledger.jobs()
    assert not ledger.active()
    assert not ledger.ended(0, 10)
    with pytest.raises(NotFound):
        ledger.remove("j")
    ledger.deregister_planner("p")
    if isinstance(ledger, RedisLedger):
        client = request.getfixturevalue("client")
        assert list(client.scan_iter()) == []


def test_what_planner_and_workers_still_do_brings_no_removed_job_back(
    ledger: Ledger, request: pytest.FixtureRequest
) -> None:
    planned(ledger, ("a",), ("b", "c"), ("d",))
    claim, other = claimed(ledger), claimed(ledger)
    lease = ledger.lease("j", "p", 30)
    assert lease
    (*_, free) = ledger.open_chunks("j")
    ledger.remove("j")
    assert not ledger.renew(claim, LEASE_S)
    assert not ledger.suspect(claim, 0)
    assert not ledger.mark(claim, Outcome(failures=(failure("a"),)))
    assert not ledger.release(other, count_attempt=False)
    assert next_claim(ledger) is None
    assert ledger.pending(MODEL, 9) == 0
    assert ledger.lease("j", "p", 30) is None
    assert ledger.plan("j", lease.token, items("e"), "d", "e") is None
    assert not ledger.finish_planning("j", lease.token, "d")
    assert not ledger.requeue("j", free)
    assert not ledger.split("j", free)
    assert not ledger.quarantine("j", free, failure("d"))
    ledger.set_waiting_reason("j", "the store is away")
    ledger.estimate("j", 7)
    assert not ledger.open_chunks("j")
    assert not ledger.failures("j")
    assert ledger.items("j", other.chunk) == ()
    with pytest.raises(NotFound):
        ledger.cancel("j")
    ledger.deregister_planner("p")
    if isinstance(ledger, RedisLedger):
        client = request.getfixturevalue("client")
        assert list(client.scan_iter()) == []


def test_jobs_that_ended_long_ago_are_named_and_others_not(ledger: Ledger, clock: Clock) -> None:
    for name in ("first", "second", "third"):
        ledger.create(a_job(name))
    ledger.cancel("second")
    clock.now += 100
    ledger.cancel("first")
    assert ledger.ended(0, 10) == ["second", "first"]
    assert ledger.ended(0, 1) == ["second"]
    assert ledger.ended(50, 10) == ["second"]
    assert ledger.ended(101, 10) == []


def test_one_keeps_house_at_a_time(ledger: Ledger, clock: Clock) -> None:
    assert ledger.acquire_cleanup_lock("p1", 60)
    assert not ledger.acquire_cleanup_lock("p2", 60)
    clock.now += 59
    assert ledger.acquire_cleanup_lock("p1", 60)
    clock.now += 61
    assert ledger.acquire_cleanup_lock("p2", 60)
    assert not ledger.acquire_cleanup_lock("p1", 60)


def test_a_long_source_is_kept_apart_from_what_everybody_reads(ledger: Ledger) -> None:
    urls = [f"https://example.org/{n}.jpg" for n in range(10_000)]
    new = a_job().model_copy(update={"source": {"type": "urls", "urls": urls}})
    job = ledger.create(new)
    assert job == ledger.job("j") == ledger.jobs()[0]
    assert len(job.new.model_dump_json()) < 1_000
    assert ledger.whole("j") == new
    assert brief(job.new) == job.new == brief(new)
    other = new.model_copy(update={"source": {"type": "urls", "urls": urls[1:]}})
    assert brief(other) != brief(new)
    with pytest.raises(NotFound):
        ledger.whole("unknown")


def test_a_long_source_goes_with_the_end_of_its_job(client: "redis.Redis") -> None:
    ledger = RedisLedger(client)
    source = {"type": "upload", "items": [{"id": "a", "uri": "", "read": "blob:a"}]}
    for end in (ledger.cancel, ledger.remove):
        ledger.create(a_job().model_copy(update={"source": source}))
        assert client.exists("clipfleet:job:j:source")
        end("j")
        assert not client.exists("clipfleet:job:j:source")
        with suppress(NotFound):
            ledger.remove("j")
    assert traces(client, "j") == []


def test_active_jobs_are_limited_and_shared_between_keys(ledger: Ledger) -> None:
    """Half of the room is for one key; which collections its jobs are of does not matter."""
    mine, yours = JobRoom(8, "mine"), JobRoom(8, "yours")
    for n in range(4):
        ledger.create(a_job(f"m{n}", f"c{n}"), room=mine)
    with pytest.raises(TooManyJobs) as refused:
        ledger.create(a_job("m4", "c4"), "again", mine)
    assert refused.value.facts == {"active": 4, "of_key": 4, "limit": 8}
    with pytest.raises(TooManyJobs):
        ledger.require_room(mine)
    assert ledger.find_by_idempotency_key("again") is None
    for n in range(2):
        ledger.require_room(yours)
        ledger.create(a_job(f"y{n}"), room=yours)
    ledger.create(a_job("y2"), room=JobRoom(8))
    ledger.create(a_job("y3"), room=JobRoom(8, "theirs"))
    for room in (mine, yours, JobRoom(8, "new"), JobRoom(8)):
        with pytest.raises(TooManyJobs):
            ledger.require_room(room)
    assert ledger.create(a_job("y0"), room=yours).id == "y0"
    ledger.cancel("m0")
    ledger.remove("m1")
    with pytest.raises(TooManyJobs, match="6 jobs are queued or running, 2 of them of this key"):
        ledger.require_room(mine)
    ledger.cancel("y3")
    ledger.require_room(mine)


def test_a_job_names_the_key_that_started_it(ledger: Ledger) -> None:
    assert ledger.create(a_job("a"), room=JobRoom(8, "mine")).key == "mine"
    assert ledger.job("a").owner == Owner("mine", "a")
    assert ledger.create(a_job("b")).key == ""


def test_a_job_of_a_release_without_the_keys_of_jobs_has_none(client: "redis.Redis") -> None:
    ledger = RedisLedger(client)
    ledger.create(a_job(), room=JobRoom(8, "mine"))
    client.hdel("clipfleet:job:j", "api_key")
    assert ledger.job("j").key == ""


def test_a_retry_without_room_is_not_recorded(ledger: Ledger) -> None:
    ended(ledger)
    ledger.create(a_job("k"))
    with pytest.raises(TooManyJobs):
        ledger.create(a_job("r", retry_of="j"), room=JobRoom(1))
    assert not ledger.job("j").retried_by
    assert ledger.create(a_job("r", retry_of="j"), room=JobRoom(2)).id == "r"
    assert ledger.job("j").retried_by == "r"
    assert ledger.create(a_job("s", retry_of="j"), room=JobRoom(2)).id == "r"


def test_jobs_that_an_older_release_ended_do_not_count(client: "redis.Redis", clock: Clock) -> None:
    """Its script does not know which jobs are of which key."""
    ledger, room = RedisLedger(client, clock), JobRoom(4, "mine")
    for n in range(2):
        ledger.create(a_job(f"j{n}"), room=room)
    client.srem("clipfleet:jobs:active", "j0", "j1")
    ledger.create(a_job("k"), room=room)
    assert client.smembers("clipfleet:jobs:active:of:mine") == {b"k"}
