"""Mirrors in the ledger, on both implementations: one for a source, one at its end at a time."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from clipfleet.common.errors import ClipfleetError, Conflict
from clipfleet.common.http.mirror import MirrorIn
from clipfleet.common.ledger import Claim, Ledger, MirrorResult, NewJob, Outcome, PlanLease
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.notes import CHANGED, GAPS, NEW, remarks
from clipfleet.common.ledger.redis import RedisLedger
from support.ledgers import LEASE_S, MODEL, Clock, Names, a_job, claimed, failure, items, traces


def a_mirror(job_id: str = "j", origin: str = "o", **options: Any) -> NewJob:
    mirror = MirrorIn(**options)
    return a_job(job_id).model_copy(update={"v": 3, "mirror": mirror, "origin": origin})


def leased(ledger: Ledger, job_id: str) -> PlanLease:
    lease = ledger.lease(job_id, "p", 30)
    assert lease
    return lease


def planned_mirror(ledger: Ledger, job_id: str = "j", origin: str = "o") -> str:
    """A mirror without images that need work; returns the token of its planner."""
    ledger.create(a_mirror(job_id, origin))
    token = leased(ledger, job_id).token
    assert ledger.plan(job_id, token, [], "", "9", None, 9) == ""
    assert ledger.finish_planning(job_id, token, "9")
    return token


def test_images_without_work_are_counted_with_the_cursor_behind_them(ledger: Ledger) -> None:
    ledger.create(a_job())
    token = leased(ledger, "j").token
    assert ledger.plan("j", token, [], "", "5", {"!gaps": 1}, 5) == ""
    assert ledger.plan("j", token, [], "", "5", None, 5) is None
    assert ledger.plan("j", token, items("a"), "5", "8", None, 2)
    assert ledger.open_chunks("j")[0].size == 1
    assert ledger.finish_planning("j", token, "8")
    ledger.mark(claimed(ledger), Outcome(done=1))
    job = ledger.job("j")
    assert (job.state, job.total, job.done, job.skipped) == ("succeeded", 8, 1, 7)
    assert job.notes == {GAPS: 1}


def test_the_counts_of_mirrors_are_no_remarks() -> None:
    assert remarks({NEW: 1, CHANGED: 2, GAPS: 3, "a remark": 4, ".mov": 5}) == {"a remark": 4}


def test_a_mirror_ends_when_it_is_closed(ledger: Ledger) -> None:
    ledger.create(a_mirror())
    token = leased(ledger, "j").token
    ledger.plan("j", token, items("a", "b"), "", "2")
    ledger.finish_planning("j", token, "2")
    assert ledger.begin_close("j", token) == "lost"  # a chunk is open
    assert not ledger.close("j", token, MirrorResult())
    ledger.mark(claimed(ledger), Outcome(done=1, failures=(failure("b"),)))
    assert ledger.job("j").state == "running"
    (look,) = ledger.tend("p", 30, limit=9, offers=0, max_attempts=3).looks
    assert (look.lease.planned, look.open) == (True, 0)
    assert ledger.begin_close("j", "another token") == "lost"
    assert ledger.begin_close("j", token) == ledger.begin_close("j", token) == "begun"
    assert not ledger.close("j", "another token", MirrorResult())
    assert ledger.close("j", token, MirrorResult(3, 2, "why"))
    assert not ledger.close("j", token, MirrorResult())
    job = ledger.job("j")
    assert (job.state, job.mirror) == ("partial", MirrorResult(3, 2, "why"))


def test_mirrors_of_two_generations_of_a_collection_run_one_after_the_other(
    ledger: Ledger,
) -> None:
    """A migration gives a collection another generation, which has the same snapshots."""
    ledger.create(a_mirror("old"))
    after = a_mirror("new").model_copy(update={"generation": "0123456789ab"})
    with pytest.raises(Conflict, match="job old mirrors this source"):
        ledger.create(after)
    ledger.cancel("old", "no longer wanted")
    ledger.create(after)


def test_a_mirror_can_end_with_an_error(ledger: Ledger) -> None:
    token = planned_mirror(ledger)
    assert ledger.close("j", token, MirrorResult(5, 0, "x"), "too many")
    assert (ledger.job("j").state, ledger.job("j").error) == ("failed", "too many")


def test_a_mirror_whose_source_breaks_off_is_not_closed(ledger: Ledger) -> None:
    ledger.create(a_mirror())
    token = leased(ledger, "j").token
    ledger.finish_planning("j", token, "", "the source broke off")
    assert ledger.begin_close("j", token) == "lost"
    assert ledger.job("j").state == "failed"


def test_one_mirror_of_a_source_runs_at_a_time(ledger: Ledger) -> None:
    ledger.create(a_mirror("j"), "key")
    assert ledger.create(a_mirror("j"), "key").id == "j"
    with pytest.raises(Conflict, match="job j mirrors this source"):
        ledger.create(a_mirror("k"))
    ledger.create(a_mirror("other", origin="another"))
    ledger.create(a_mirror("dry", dry_run=True))
    ledger.create(a_job("plain").model_copy(update={"origin": "o"}))
    ledger.cancel("j")
    ledger.create(a_mirror("k"))
    with pytest.raises(Conflict, match="job k"):
        ledger.create(a_mirror("l"))


def test_one_mirror_of_a_collection_ends_at_a_time(ledger: Ledger) -> None:
    first, second = planned_mirror(ledger, "j"), planned_mirror(ledger, "k", "another")
    assert ledger.begin_close("j", first) == "begun"
    assert ledger.begin_close("k", second) == "wait"
    ledger.cancel("j")
    assert ledger.begin_close("j", first) == "lost"
    assert ledger.begin_close("k", second) == "begun"
    ledger.close("k", second, MirrorResult())
    third = planned_mirror(ledger, "l")
    assert ledger.begin_close("l", third) == "begun"


def test_another_planner_closes_a_mirror_whose_planner_died(ledger: Ledger, clock: Clock) -> None:
    token = planned_mirror(ledger)
    assert ledger.begin_close("j", token) == "begun"
    clock.now += 31
    ledger.tend("q", 30, limit=9, offers=9, max_attempts=3)
    lease = ledger.lease("j", "q", 30)
    assert lease
    assert lease.planned
    assert ledger.begin_close("j", token) == "lost"
    assert ledger.begin_close("j", lease.token) == "begun"
    assert ledger.close("j", lease.token, MirrorResult())


def test_a_removed_mirror_leaves_nothing_in_redis(client: "redis.Redis") -> None:
    ledger = RedisLedger(client)
    for job_id in ("cancelled", "running"):
        token = planned_mirror(ledger, job_id, job_id)
        ledger.begin_close(job_id, token)
        if job_id == "cancelled":
            ledger.cancel(job_id)
        ledger.remove(job_id)
        assert traces(client, job_id) == []


class Mirrors(RuleBasedStateMachine):
    """Mirrors of two sources in every order of events. Every call goes to both ledgers."""

    client: Any = None
    JOBS = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        clock = Clock()
        self.ledgers: list[Ledger] = [
            MemoryLedger(clock, Names()),
            RedisLedger(self.client, clock, Names()),
        ]
        self.clock = clock
        self.leases: dict[str, PlanLease] = {}

    def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        def ask(ledger: Ledger) -> Any:
            try:
                return getattr(ledger, method)(*args, **kwargs)
            except ClipfleetError as error:
                return type(error), error.detail

        first, second = map(ask, self.ledgers)
        assert first == second, (method, first, second)
        return first

    @rule(job=JOBS, origin=st.sampled_from(["o", "p"]), dry=st.booleans())
    def create(self, job: str, origin: str, dry: bool) -> None:
        self.both("create", a_mirror(job, origin, dry_run=dry))

    @rule(job=JOBS, planner=st.sampled_from(["p1", "p2"]))
    def lease(self, job: str, planner: str) -> None:
        if lease := self.both("lease", job, planner, 20.0):
            self.leases[job] = lease

    @rule(job=JOBS, size=st.integers(0, 3), skipped=st.integers(0, 3))
    def plan(self, job: str, size: int, skipped: int) -> None:
        lease = self.leases.get(job)
        if lease and size + skipped:
            first = int(lease.cursor or 0)
            planned = items(*[f"i{first + n}" for n in range(size)])
            cursor = str(first + size + skipped)
            args = (job, lease.token, planned, lease.cursor, cursor, None, skipped)
            if self.both("plan", *args) is not None:
                self.leases[job] = replace(lease, cursor=cursor)

    @rule(job=JOBS)
    def finish_planning(self, job: str) -> None:
        if lease := self.leases.get(job):
            self.both("finish_planning", job, lease.token, lease.cursor, "")

    @rule(fails=st.booleans())
    def work(self, fails: bool) -> None:
        claim = self.both("claim", MODEL, "w", LEASE_S, 9)
        if isinstance(claim, Claim):
            size = len(claim.items)
            failures = tuple(failure(item.id) for item in claim.items) if fails else ()
            self.both("mark", claim, Outcome(done=size - len(failures), failures=failures))

    @rule(job=JOBS, error=st.sampled_from(["", "", "too many"]), ends=st.booleans())
    def close(self, job: str, error: str, ends: bool) -> None:
        if lease := self.leases.get(job):
            state = self.both("begin_close", job, lease.token)
            if ends and state == "begun":
                assert self.both("close", job, lease.token, MirrorResult(2, 1), error)

    @rule(job=JOBS, method=st.sampled_from(["cancel", "remove"]))
    def end(self, job: str, method: str) -> None:
        self.both(method, job)

    @rule()
    def time_passes(self) -> None:
        self.clock.now += 25.0
        self.both("tend", "p1", 20.0, limit=5, offers=0, max_attempts=9)

    @rule()
    def look(self) -> None:
        for job in ("a", "b", "c"):
            with suppress(ClipfleetError):
                self.both("job", job)
        self.both("active")


def test_the_ledgers_agree_about_mirrors(client: "redis.Redis") -> None:
    Mirrors.client = client
    few = settings(
        max_examples=60,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Mirrors, settings=few)
