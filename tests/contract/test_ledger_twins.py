"""Both ledgers through every order of events: their answers agree, and nothing is counted twice."""

from typing import Any

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

from clipfleet.common.errors import ClipfleetError, NotFound
from clipfleet.common.ledger import FINAL, Claim, Ledger, Outcome, Refusal
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.redis import RedisLedger
from support.ledgers import LEASE_S, Clock, a_job, failure, items, traces


class Twins(RuleBasedStateMachine):
    """Every call goes to both ledgers; their answers must agree, and nothing be counted twice."""

    claims = Bundle("claims")
    client: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.client.flushall()
        self.ledgers: list[Ledger] = [
            MemoryLedger(self.clock),
            RedisLedger(self.client, self.clock),
        ]
        self.token = -1
        self.planned_items = 0
        self.cursor = ""
        self.counted: dict[str, int] = {}
        self.removed = False
        self.retries = 0

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

    @initialize()
    def create(self) -> None:
        self.both("create", a_job(), "g1:key")
        self.lease("p1")

    @rule(planner=st.sampled_from(["p1", "p2"]))
    def lease(self, planner: str) -> None:
        lease = self.both("lease", "j", planner, 20.0)
        self.token = lease.token if lease else self.token

    @rule(size=st.integers(1, 4), stale=st.booleans())
    def plan(self, size: int, stale: bool) -> None:
        ids = [f"i{self.planned_items + n}" for n in range(size)]
        token = self.token - 1 if stale else self.token
        if self.both("plan", "j", token, items(*ids), self.cursor, ids[-1]) is not None:
            self.planned_items += size
            self.cursor = ids[-1]

    @rule(error=st.sampled_from(["", "", "", "source broke"]))
    def end_plan(self, error: str) -> None:
        self.both("end_plan", "j", self.token, error)

    @rule(target=claims, no=st.integers(1, 12), worker=st.sampled_from(["w1", "w2", "w3"]))
    def claim(self, no: int, worker: str) -> Claim | Refusal:
        return self.both("claim", "j", no, worker, LEASE_S)  # type: ignore[no-any-return]

    @rule(claim=claims)
    def renew(self, claim: Claim | Refusal) -> None:
        if isinstance(claim, Claim):
            self.both("renew", claim, LEASE_S)

    @rule(claim=claims, data=st.data())
    def suspect(self, claim: Claim | Refusal, data: st.DataObject) -> None:
        if isinstance(claim, Claim):
            places = st.none() | st.integers(0, len(claim.items) - 1)
            self.both("suspect", claim, data.draw(places))

    @rule(claim=claims, data=st.data())
    def mark(self, claim: Claim | Refusal, data: st.DataObject) -> None:
        """Redelivery and duplicates too: a claim can be marked again and again."""
        if not isinstance(claim, Claim):
            return
        size = len(claim.items)
        failed = data.draw(st.integers(0, size))
        skipped = data.draw(st.integers(0, size - failed))
        failures = tuple(failure(item.id) for item in claim.items[:failed])
        outcome = Outcome(size - failed - skipped, skipped, failures)
        if self.both("mark", claim, outcome):
            for item in claim.items:
                self.counted[item.id] = self.counted.get(item.id, 0) + 1

    @rule(claim=claims, count=st.booleans())
    def release(self, claim: Claim | Refusal, count: bool) -> None:
        if isinstance(claim, Claim):
            self.both("release", claim, count_attempt=count)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        """Past the lease: whoever held a chunk is as good as dead."""
        self.clock.now += seconds

    @rule(no=st.integers(1, 12))
    def send(self, no: int) -> None:
        self.both("sent", "j", no)

    @rule()
    def give_up_on_chunks_that_were_tried_too_often(self) -> None:
        for chunk in self.both("open_chunks", "j"):
            if chunk.attempt >= 2 and chunk.size > 1:
                self.both("split", "j", chunk)
            elif chunk.attempt >= 2:
                (item,) = self.both("items", "j", chunk.no)
                if self.both("bury", "j", chunk, failure(item.id)):
                    self.counted[item.id] = self.counted.get(item.id, 0) + 1

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

    @rule()
    def retry(self) -> None:
        self.both("create", a_job(f"r{self.retries}", retry_of="j"))
        self.retries += 1

    @rule(number=st.integers(0, 3), removed=st.booleans())
    def end_a_retry(self, number: int, removed: bool) -> None:
        self.both("remove" if removed else "cancel", f"r{number}")

    @rule(method=st.sampled_from(["note", "estimate"]))
    def tell_of_it(self, method: str) -> None:
        self.both(method, "j", "the store is away" if method == "note" else 7)

    @rule(keeper=st.sampled_from(["p1", "p2"]))
    def keep_house(self, keeper: str) -> None:
        self.both("keep_house", keeper, 5.0)

    @rule(seconds_ago=st.sampled_from([0.0, 10.0]), limit=st.integers(1, 3))
    def look_around(self, seconds_ago: float, limit: int) -> None:
        self.both("ended", seconds_ago, limit)
        self.both("made", "g1:key")
        for states in ((), ("cancelled",), ("queued", "running")):
            self.both("jobs", limit, 0, "photos", states)
            self.both("jobs", limit, 1, "", states)

    @invariant()
    def the_counts_are_exact(self) -> None:
        if self.removed:
            return
        job = self.both("job", "j")
        counted = job.done + job.failed + job.skipped
        assert all(times == 1 for times in self.counted.values())
        assert counted == len(self.counted) <= job.total == self.planned_items
        open_items = sum(chunk.size for chunk in self.both("open_chunks", "j"))
        if job.state == "running":
            assert counted + open_items == job.total
        if job.state in FINAL - {"cancelled"}:
            assert counted == job.total
            assert open_items == 0
        assert len(self.both("failures", "j")) == job.failed
        assert ("j" in self.both("active")) == (job.state not in FINAL)

    @invariant()
    def of_a_removed_job_nothing_is_left_or_comes_back(self) -> None:
        if self.removed:
            assert self.both("job", "j")[0] is NotFound
            assert self.both("open_chunks", "j") == self.both("failures", "j") == []
            assert traces(self.client, "j") == []


def test_both_ledgers_agree_and_count_exactly(client: "redis.Redis") -> None:
    Twins.client = client
    run = settings(
        max_examples=200,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Twins, settings=run)
