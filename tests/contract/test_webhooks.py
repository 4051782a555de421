"""Webhooks that are due, in memory and in Redis."""

import pytest
import redis

from clipfleet.common.ledger import Ledger
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.webhooks import MemoryWebhooks, RedisWebhooks, Webhooks
from support.ledgers import Clock, a_job, dumped, restore, traces
from support.webhooks import SECRET, ended, job_with_webhook

A, B = "https://a.example/hook", "https://b.example/hook"
LEASE_S = 30.0


@pytest.fixture
def webhooks(ledger: Ledger, clock: Clock, request: pytest.FixtureRequest) -> Webhooks:
    """Of the same ledger."""
    if isinstance(ledger, MemoryLedger):
        return MemoryWebhooks(ledger, clock)
    return RedisWebhooks(request.getfixturevalue("client"), clock)


def test_a_webhook_is_due_once_its_job_has_ended(ledger: Ledger, webhooks: Webhooks) -> None:
    ledger.create(a_job("without"))
    ledger.create(job_with_webhook("j", A))
    assert (ledger.job("j").webhook, ledger.job("without").webhook) == ("pending", "")
    assert webhooks.claim(LEASE_S) is None
    ledger.cancel("without")
    ledger.cancel("j")
    claim = webhooks.claim(LEASE_S)
    assert claim
    assert (claim.job_id, claim.tries, claim.host, claim.key) == ("j", 1, "a.example", "")
    assert webhooks.claim(LEASE_S) is None
    assert webhooks.settle(claim, "delivered")
    job = ledger.job("j")
    assert (job.webhook, job.webhook_reason, job.webhook_tries) == ("delivered", "", 1)
    assert job.new.webhook
    assert job.new.webhook.secret == SECRET
    assert SECRET not in repr(job)


def test_every_way_to_end_makes_it_due(ledger: Ledger, webhooks: Webhooks) -> None:
    ledger.create(job_with_webhook("j", A))
    lease = ledger.lease("j", "planner", 60.0)
    assert lease
    assert webhooks.claim(LEASE_S) is None
    assert ledger.finish_planning("j", lease.token, "", error="the folder is empty")
    assert ledger.job("j").state == "failed"
    claim = webhooks.claim(LEASE_S)
    assert claim
    assert claim.job_id == "j"


def test_a_claim_that_is_not_settled_expires(
    ledger: Ledger, webhooks: Webhooks, clock: Clock
) -> None:
    ended(ledger, "j", A)
    first = webhooks.claim(LEASE_S)
    clock.now += LEASE_S - 1
    assert webhooks.claim(LEASE_S) is None
    clock.now += 2
    second = webhooks.claim(LEASE_S)
    assert first
    assert second
    assert (second.job_id, second.tries) == ("j", 2)
    assert not webhooks.settle(first, "failed", "too late")
    assert not webhooks.settle(first, "pending", "too late")
    assert ledger.job("j").webhook == "pending"
    assert webhooks.settle(first, "delivered")  # late, and true
    assert not webhooks.settle(second, "failed", "the receiver has it")
    assert ledger.job("j").webhook == "delivered"
    clock.now += 2 * LEASE_S
    assert webhooks.claim(LEASE_S) is None


def test_it_is_due_again_after_the_pause_unless_it_has_failed(
    ledger: Ledger, webhooks: Webhooks, clock: Clock
) -> None:
    ended(ledger, "j", A)
    for tries in (1, 2):
        claim = webhooks.claim(LEASE_S)
        assert claim
        assert claim.tries == tries
        assert webhooks.settle(claim, "pending", "it answered 503", 100.0)
        assert ledger.job("j").webhook_reason == "it answered 503"
        clock.now += 99
        assert webhooks.claim(LEASE_S) is None
        clock.now += 2
    claim = webhooks.claim(LEASE_S)
    assert claim
    assert webhooks.settle(claim, "failed", "it answered 410")
    clock.now += 10_000
    assert webhooks.claim(LEASE_S) is None
    assert (ledger.job("j").webhook, ledger.job("j").webhook_tries) == ("failed", 3)


def test_hosts_and_keys_take_turns(ledger: Ledger, webhooks: Webhooks, clock: Clock) -> None:
    for n in range(3):
        ended(ledger, f"a{n}", A, "one")
        clock.now += 1
    ended(ledger, "b", B, "one")
    clock.now += 1
    ended(ledger, "c", A, "two")
    claims = []
    for _ in range(5):
        clock.now += 0.001
        claims.append(webhooks.claim(LEASE_S))
    order = [claim.job_id for claim in claims if claim]
    assert order[0] == "a0"
    assert set(order[1:3]) == {"b", "c"}
    assert order[3:] == ["a1", "a2"]


def test_full_hosts_and_keys_are_passed_over(ledger: Ledger, webhooks: Webhooks) -> None:
    ended(ledger, "a", A, "one")
    ended(ledger, "b", B, "two")
    assert webhooks.claim(LEASE_S, full_hosts=["a.example", "b.example"]) is None
    assert webhooks.claim(LEASE_S, full_keys=["one", "two"]) is None
    claim = webhooks.claim(LEASE_S, full_hosts=["a.example"], full_keys=["three"])
    assert claim
    assert (claim.job_id, claim.key) == ("b", "two")
    claim = webhooks.claim(LEASE_S, full_keys=["two"])
    assert claim
    assert claim.job_id == "a"


def test_a_removed_job_has_no_webhook(
    ledger: Ledger, webhooks: Webhooks, request: pytest.FixtureRequest
) -> None:
    ended(ledger, "sent", A)
    claim = webhooks.claim(LEASE_S)
    assert claim
    ended(ledger, "waits", A)
    ledger.create(job_with_webhook("runs", A))
    for job_id in ("sent", "waits", "runs"):
        ledger.begin_removal(job_id)
        ledger.remove(job_id)
        if isinstance(ledger, RedisLedger):
            assert traces(request.getfixturevalue("client"), job_id) == []
    assert webhooks.claim(LEASE_S) is None
    assert not webhooks.settle(claim, "delivered")
    assert not webhooks.settle(claim, "pending")


def test_a_redis_that_has_lost_its_last_second_sends_again(
    client: "redis.Redis", clock: Clock
) -> None:
    """Each write may be lost with all after it: the webhook is due again, under the same id."""
    ledger, webhooks = RedisLedger(client, clock), RedisWebhooks(client, clock)
    ledger.create(job_with_webhook("j", A))
    running = dumped(client)
    ledger.cancel("j")
    over = dumped(client)
    claim = webhooks.claim(LEASE_S)
    assert claim
    claimed = dumped(client)
    assert webhooks.settle(claim, "delivered")
    for moment, wait_s in ((claimed, LEASE_S + 1), (over, 0.0), (running, 0.0)):
        restore(client, moment)
        clock.now += wait_s
        if moment is running:
            assert webhooks.claim(LEASE_S) is None
            ledger.cancel("j")
        again = webhooks.claim(LEASE_S)
        assert again
        assert again.job_id == "j"
        assert webhooks.settle(again, "delivered")
        assert webhooks.claim(LEASE_S) is None


def test_a_job_that_another_release_removed_is_passed_over(
    client: "redis.Redis", clock: Clock
) -> None:
    ledger, webhooks = RedisLedger(client, clock), RedisWebhooks(client, clock)
    ended(ledger, "gone", A)
    claim = webhooks.claim(LEASE_S)
    assert claim
    client.delete("clipfleet:job:gone")
    clock.now += LEASE_S + 1
    assert webhooks.claim(LEASE_S) is None
    ended(ledger, "j", A)
    claim = webhooks.claim(LEASE_S)
    assert claim
    assert claim.job_id == "j"
    assert webhooks.settle(claim, "delivered")
    assert list(client.scan_iter("clipfleet:webhooks:*")) == []
