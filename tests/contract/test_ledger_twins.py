"""Both ledgers through every order of events: their answers agree, and nothing is counted twice."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from clipfleet.common.blobs import Blobs
from clipfleet.common.errors import ClipfleetError, NotFound
from clipfleet.common.ledger import FINAL, Claim, JobRoom, Ledger, Outcome, PlanLease
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.redis import RedisLedger
from support.ledgers import (
    LEASE_S,
    MODEL,
    Clock,
    Keys,
    Names,
    a_job,
    dumped,
    failure,
    items,
    restore,
    traces,
)

JOBS = st.sampled_from(["j", "j", "k"])
PLACES = st.sampled_from(["file", "url", "part:0:1:url", "part:0:1:file"])
# What the memory ledger has in place of Redis.
KEPT_IN_REDIS = {
    "_entries", "_idempotency_keys", "_keeper", "_removing", "_planners", "_served",
    "_mirrors", "_closing",
}  # fmt: skip


@dataclass
class Moment:
    """What a Redis has on disk, and what the test knows of that time."""

    keys: Keys
    entries: dict[str, Any]
    counted: dict[str, int]
    totals: dict[str, int]
    removed: bool
    granted: set[str]


class Work(RuleBasedStateMachine):
    """Two jobs are worked on, and Redis forgets. Every call goes to both ledgers: their answers
    must agree, and nothing be counted twice."""

    claims = Bundle("claims")
    client: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.client.flushall()
        self.memory = MemoryLedger(self.clock, Names())
        self.blobs = Blobs("memory://clipfleet-twins")
        self.blobs.delete_below("failures")
        redis_ledger = RedisLedger(self.client, self.clock, Names(), self.blobs)
        self.ledgers: list[Ledger] = [self.memory, redis_ledger]
        self.leases: dict[str, PlanLease] = {}
        self.totals = {"j": 0, "k": 0}
        self.counted: dict[str, int] = {}  # how often, by job and item
        self.granted: set[str] = set()  # tokens of claims
        self.lost: set[str] = set()  # those that Redis has forgotten
        self.removed = False
        self.moment = self.present()  # of an empty Redis, until the job is there

    def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What both answer, or the error that both raise."""

        def ask(ledger: Ledger) -> Any:
            try:
                return getattr(ledger, method)(*args, **kwargs)
            except ClipfleetError as error:
                return type(error), error.detail

        first, second = map(ask, self.ledgers)
        assert first == second, (method, first, second)
        return first

    @initialize(keys=st.sampled_from([("", ""), ("a", ""), ("a", "a"), ("a", "b")]))
    def create(self, keys: tuple[str, str]) -> None:
        """`j` goes through everything. `k` is a neighbour whose planning never ends."""
        self.both("create", a_job(), "g1:key", JobRoom(key=keys[0]))
        self.both("create", a_job("k", "maps"), "", JobRoom(key=keys[1]))
        for job in self.totals:
            self.leases[job] = self.both("lease", job, "p1", 20.0)
        self.moment = self.present()

    @rule(job=JOBS, size=st.integers(1, 4), place=PLACES)
    def plan(self, job: str, size: int, place: str) -> None:
        """The source is the numbers from 0 on; the cursor is the next of them."""
        lease = self.both("lease", job, "p1", 20.0)
        if lease:
            self.leases[job] = lease
            self.plan_as(lease.token, job, size, place)

    def plan_as(self, token: str, job: str, size: int, place: str = "file") -> None:
        lease = self.leases[job]
        first = int(lease.cursor or 0)
        ids = [f"i{first + n}" for n in range(size)]
        cursor = str(first + size)
        planned = items(*ids, place=place)
        notes = {".heic": size, "a remark": 1}
        if self.both("plan", job, token, planned, lease.cursor, cursor, notes) is not None:
            self.totals[job] += size
            self.leases[job] = replace(lease, cursor=cursor)

    @rule(target=claims, worker=st.sampled_from(["w1", "w2", "w3"]), remote=st.booleans())
    def claim(self, worker: str, remote: bool) -> Claim | None:
        claim: Claim | None = self.both("claim", MODEL, worker, LEASE_S, 2, remote=remote)
        if claim:
            assert any(item.is_remote for item in claim.items) == remote
            self.granted.add(claim.token)
        return claim

    @rule()
    def requeue(self) -> None:
        """As a planner does with the chunks of the dead."""
        for job in self.totals:
            for chunk in self.both("open_chunks", job):
                if chunk.expired:
                    self.both("requeue", job, chunk)

    @rule(target=claims, claim=claims, data=st.data())
    def mark(self, claim: Claim | None, data: st.DataObject) -> Claim | None:
        """Redelivery and duplicates too: a claim can be marked again and again."""
        if claim is None:
            return None
        size = len(claim.items)
        tried = data.draw(st.integers(0 if size > 1 else 1, size))
        failed = data.draw(st.integers(0, tried))
        skipped = data.draw(st.integers(0, tried - failed))
        failures = tuple(failure(item.id) for item in claim.items[:failed])
        rest, rate = claim.items[tried:], data.draw(st.sampled_from([0.0, 0.08, 200.0]))
        done = tried - failed - skipped
        keeps = data.draw(st.integers(0, len(rest)))
        kept, rest = rest[:keeps], rest[keeps:]
        if not self.both("mark", claim, Outcome(done, skipped, failures, rest, rate, kept)):
            return None
        assert claim.token not in self.lost, "a claim of the lost time counted"
        for item in claim.items[:tried]:
            self.count(claim.job_id, item.id)
        return claim.of(kept) if kept else None

    def count(self, job: str, item_id: str) -> None:
        key = f"{job}/{item_id}"
        self.counted[key] = self.counted.get(key, 0) + 1

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        """Past the lease: whoever held a chunk is as good as dead."""
        self.clock.now += seconds

    def present(self) -> Moment:
        keys = dumped(self.client)
        assert vars(self.memory).keys() >= KEPT_IN_REDIS
        entries = {
            name: deepcopy(value)
            for name, value in vars(self.memory).items()
            if name in KEPT_IN_REDIS
        }
        counted, granted = dict(self.counted), set(self.granted)
        return Moment(keys, entries, counted, dict(self.totals), self.removed, granted)

    @rule()
    def redis_writes_to_disk(self) -> None:
        self.moment = self.present()

    @rule()
    def redis_forgets(self) -> None:
        """It comes back without its last seconds. Workers and planners know nothing of it. Who
        removed a job in that time does so again: its failures are gone from the blob store."""
        restore(self.client, self.moment.keys)
        vars(self.memory).update(deepcopy(self.moment.entries))
        self.counted, self.totals = dict(self.moment.counted), dict(self.moment.totals)
        if self.removed and not self.moment.removed:
            self.both("remove", "j")
        self.removed |= self.moment.removed
        self.lost |= self.granted - self.moment.granted

    @invariant()
    def the_counts_are_exact(self) -> None:
        pending = 0
        for job_id in self.totals:
            if not (self.removed and job_id == "j"):
                pending += self.pending_of(job_id)
        assert [self.both("pending", MODEL, limit) for limit in (2, 99)] == [
            min(2, pending), pending,
        ]  # fmt: skip

    def pending_of(self, job_id: str) -> int:
        job, chunks = self.both("job", job_id), self.both("open_chunks", job_id)
        counted = job.done + job.failed + job.skipped
        times = [n for key, n in self.counted.items() if key.startswith(f"{job_id}/")]
        assert set(times) <= {1}
        assert counted == len(times) <= job.total == self.totals[job_id]
        open_items = sum(chunk.size for chunk in chunks)
        if job.state == "running":
            assert counted + open_items == job.total
        if job.state in FINAL - {"cancelled"}:
            assert counted == job.total
            assert open_items == 0
        assert len(self.both("failures", job_id)) == job.failed
        assert (job_id in self.both("active")) == (job.state not in FINAL)
        return sum(not chunk.leased for chunk in chunks) if job.state == "running" else 0


class Twins(Work):
    """Also planners that take over, jobs that end in every way, and all that is asked of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stale_token = "of nobody"
        self.retries = 0

    @rule(job=JOBS, planner=st.sampled_from(["p1", "p2"]))
    def lease(self, job: str, planner: str) -> None:
        lease = self.both("lease", job, planner, 20.0)
        if lease:
            before = self.leases[job]
            self.stale_token = before.token if before.token != lease.token else self.stale_token
            self.leases[job] = lease

    @rule(job=JOBS, size=st.integers(1, 4))
    def plan_with_a_stale_lease(self, job: str, size: int) -> None:
        self.plan_as(self.stale_token, job, size)

    @rule(job=JOBS, size=st.integers(1, 4))
    def plan_without_a_look_at_the_lease(self, job: str, size: int) -> None:
        self.plan_as(self.leases[job].token, job, size)

    @rule(planner=st.sampled_from(["p1", "p2"]), limit=st.integers(0, 3), due=st.booleans())
    def tend(self, planner: str, limit: int, due: bool) -> None:
        """A planner's round; it takes what is offered."""
        more = ["j"] if due else []
        round_ = self.both(
            "tend", planner, 20.0, limit=limit, offers=limit, max_attempts=2, due=more
        )
        for job in round_.offered:
            if job in self.leases:
                self.lease(job, planner)
            else:
                self.both("lease", job, planner, 20.0)

    @rule(planner=st.sampled_from(["p1", "p2"]))
    def leave(self, planner: str) -> None:
        self.both("deregister_planner", planner)

    @rule(error=st.sampled_from(["", "", "", "source broke"]))
    def finish_planning(self, error: str) -> None:
        lease = self.leases["j"]
        self.both("finish_planning", "j", lease.token, lease.cursor, error)

    @rule(claim=Work.claims)
    def renew(self, claim: Claim | None) -> None:
        if claim:
            assert not (self.both("renew", claim, LEASE_S) and claim.token in self.lost)

    @rule(claim=Work.claims, data=st.data())
    def suspect(self, claim: Claim | None, data: st.DataObject) -> None:
        if claim:
            indices = st.none() | st.integers(0, len(claim.items) - 1)
            index = data.draw(indices)
            assert not (self.both("suspect", claim, index) and claim.token in self.lost)

    @rule(claim=Work.claims, count=st.booleans())
    def release(self, claim: Claim | None, count: bool) -> None:
        if claim:
            released = self.both("release", claim, count_attempt=count)
            assert not (released and claim.token in self.lost)

    @rule(job=JOBS)
    def give_up_on_chunks_that_were_tried_too_often(self, job: str) -> None:
        for chunk in self.both("open_chunks", job):
            if chunk.attempt >= 2 and chunk.size > 1:
                self.both("split", job, chunk)
            elif chunk.attempt >= 2:
                (item,) = self.both("items", job, chunk.name)
                if self.both("quarantine", job, chunk, failure(item.id)):
                    self.count(job, item.id)

    @rule(sure=st.integers(0, 9))
    def cancel(self, sure: int) -> None:
        if sure == 0:
            self.both("cancel", "j", "enough")

    @rule(sure=st.integers(0, 9))
    def remove(self, sure: int) -> None:
        """In whatever state it is; workers go on with the chunks in their hands."""
        if sure == 0:
            self.both("remove", "j")
            self.removed = True

    @rule(sure=st.integers(0, 9))
    def begin_removal(self, sure: int) -> None:
        if sure == 0:
            self.both("begin_removal", "j", "it is removed")

    @rule()
    def retry(self) -> None:
        self.both("create", a_job(f"r{self.retries}", retry_of="j"))
        self.retries += 1

    @rule(number=st.integers(0, 3), removed=st.booleans())
    def end_a_retry(self, number: int, removed: bool) -> None:
        self.both("remove" if removed else "cancel", f"r{number}")

    @rule(method=st.sampled_from(["set_waiting_reason", "estimate"]))
    def tell_of_it(self, method: str) -> None:
        self.both(method, "j", "the store is away" if method == "set_waiting_reason" else 7)

    @rule(keeper=st.sampled_from(["p1", "p2"]))
    def acquire_cleanup_lock(self, keeper: str) -> None:
        self.both("acquire_cleanup_lock", keeper, 5.0)

    @rule(seconds_ago=st.sampled_from([0.0, 10.0]), limit=st.integers(1, 3))
    def look_around(self, seconds_ago: float, limit: int) -> None:
        self.both("ended", seconds_ago, limit)
        self.both("removals", limit)
        self.both("find_by_idempotency_key", "g1:key")
        for states in ((), ("cancelled",), ("queued", "running")):
            self.both("jobs", limit, 0, "photos", states)
            self.both("jobs", limit, 1, "", states)
            self.both("jobs", 9, 0, "", states, lambda name: name == "photos")
        for offset in range(6):
            self.both("failures", "j", limit, offset)

    @invariant()
    def every_job_is_counted_and_has_at_most_one_planner(self) -> None:
        counts = self.both("count_jobs")
        assert sum(counts.values()) == len(self.both("jobs", 99))
        owned = [*self.both("owned", "p1"), *self.both("owned", "p2")]
        assert len(owned) == len(set(owned))
        assert set(owned) <= set(self.both("active"))

    @invariant()
    def of_a_removed_job_nothing_is_left_or_comes_back(self) -> None:
        if self.removed:
            assert self.both("job", "j")[0] is NotFound
            assert self.both("open_chunks", "j") == self.both("failures", "j") == []
            assert traces(self.client, "j") == []
            assert fsspec.filesystem("memory").find("/clipfleet-twins/failures/j") == []


def run(machine: type[Work], client: "redis.Redis", examples: int) -> None:
    """Redis keeps two failures of a job; the others lie in the blob store."""
    machine.client = client
    many = settings(
        max_examples=examples,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=many)


def test_both_ledgers_agree_and_count_exactly(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.common.ledger.redis.KEPT_FAILURES", 2)
    run(Twins, client, 150)


def test_nothing_of_the_time_that_redis_forgot_counts(
    client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.common.ledger.redis.KEPT_FAILURES", 2)
    run(Work, client, 60)
