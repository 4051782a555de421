"""Numbers of the fleet, read from a real Valkey to which real parts have written."""

import time
from typing import Any

import pytest
import redis

from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Outcome
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.queue.broker import PRIORITY_STEPS, CeleryPublisher, make_celery, queue_keys
from clipfleet.common.queue.fleet import RedisFleet
from clipfleet.common.queue.messages import IngestNudge, QueryBatch
from clipfleet.common.queue.overview import RedisOverviews
from clipfleet.common.settings import Settings
from support.ledgers import MODEL, a_job, claimed, failure, items
from support.query_fleet import a_card


@pytest.fixture
def ledger(client: "redis.Redis") -> RedisLedger:
    return RedisLedger(client)


def planned(ledger: RedisLedger, job: str, names: str, estimated: int = 0) -> None:
    """Plan one chunk of a job and leave its planning open."""
    lease = ledger.lease(job, "p", 60)
    assert lease
    ledger.estimate(job, estimated)
    assert ledger.plan(job, lease.token, items(*names), lease.cursor, names[-1])


def ended(ledger: RedisLedger, job: str) -> None:
    lease = ledger.lease(job, "p", 60)
    assert lease
    assert ledger.finish_planning(job, lease.token, lease.cursor)


def test_work_left_is_what_is_pending_leased_and_estimated(
    client: "redis.Redis", ledger: RedisLedger
) -> None:
    overviews = RedisOverviews(client, MODEL)
    model = ledger.create(a_job("one")).new.model
    planned(ledger, "one", "abc", estimated=10)
    assert overviews.read().remaining[model] == 10
    planned(ledger, "one", "de", estimated=10)
    first, _ = claimed(ledger), claimed(ledger)
    assert overviews.read().remaining[model] == 10
    ledger.mark(first, Outcome(done=2, failures=(failure("c"),)))
    assert overviews.read().remaining[model] == 7
    ended(ledger, "one")  # the estimate was wrong: there are no more
    assert overviews.read().remaining[model] == 2
    ledger.cancel("one")
    assert overviews.read().remaining[model] == 0


def test_jobs_are_counted_by_state_until_they_are_removed(
    client: "redis.Redis", ledger: RedisLedger
) -> None:
    overviews = RedisOverviews(client, MODEL)
    assert set(overviews.read().jobs.values()) == {0}
    for job in ("queued", "running", "good", "gone"):
        ledger.create(a_job(job))
    planned(ledger, "good", "a")
    ledger.mark(claimed(ledger), Outcome(done=1))
    ended(ledger, "good")
    planned(ledger, "running", "a")
    ledger.cancel("gone")
    seen = overviews.read().jobs
    assert seen == {
        "queued": 1, "running": 1, "succeeded": 1, "cancelled": 1, "failed": 0, "partial": 0,
    }  # fmt: skip
    assert overviews.read().jobs == seen
    ledger.remove("gone")
    ledger.remove("queued")
    assert overviews.read().jobs == {**seen, "cancelled": 0, "queued": 0}


def test_the_queues_depth_and_age_are_those_of_all_its_lists(
    client: "redis.Redis", valkey_url: str
) -> None:
    publisher = CeleryPublisher(make_celery(Settings(redis_url=valkey_url)), client)
    before = time.time()
    now = [before]
    overviews = RedisOverviews(client, MODEL, lambda: now[0])
    assert overviews.read().queues["ingest", MODEL].messages == 0
    assert overviews.read().queues["ingest", MODEL].age_s == 0
    queue, *others = queue_keys(f"ingest.{MODEL}")
    for other in others:  # a release before this one wrote to these, too
        publisher.publish(IngestNudge(model=MODEL))
        client.rename(queue, other)
    publisher.publish(IngestNudge(model=MODEL))
    after = time.time()
    now[0] = before + 100
    waiting = overviews.read().queues["ingest", MODEL]
    assert waiting.messages == len(PRIORITY_STEPS)
    assert publisher.waiting(queue) == len(PRIORITY_STEPS)
    assert waiting.age_s is not None
    assert 100 - (after - before) <= waiting.age_s <= 100
    assert overviews.read().queues["query", MODEL].messages == 0
    client.rpop(others[0])  # a worker took the oldest
    later = overviews.read().queues["ingest", MODEL].age_s
    assert later is not None
    assert later < waiting.age_s


def test_the_oldest_of_a_list_is_the_next_to_be_taken(
    client: "redis.Redis", valkey_url: str
) -> None:
    celery: Any = make_celery(Settings(redis_url=valkey_url))
    publisher = CeleryPublisher(celery, client)
    now = [0.0]
    overviews = RedisOverviews(client, MODEL, lambda: now[0])

    def age() -> float:
        age_s = overviews.read().queues["query", MODEL].age_s
        assert age_s is not None
        return age_s

    for name in ("first", "second"):
        publisher.publish(
            QueryBatch(model=MODEL, batch_id=name, reply_to="r", deadlines=(), queries=())
        )
    now[0] = time.time()
    first = age()
    with celery.connection_for_read() as connection:
        taken = connection.SimpleQueue(f"query.{MODEL}").get(timeout=10)
        assert "batch first" in taken.headers["argsrepr"]
        second = age()
        taken.ack()
    assert first > second >= 0


def test_messages_that_do_not_say_when_they_were_sent_have_no_age(client: "redis.Redis") -> None:
    overviews = RedisOverviews(client, MODEL)
    for raw in ("no JSON", "[]", '{"headers": {}}', '{"headers": {"sent_at": "soon"}}'):
        client.lpush(f"ingest.{MODEL}", raw)
        waiting = overviews.read().queues["ingest", MODEL]
        assert waiting.messages
        assert waiting.age_s is None


def test_workers_are_counted_per_lane_and_models_without_any_are_shown(
    client: "redis.Redis", ledger: RedisLedger
) -> None:
    overviews = RedisOverviews(client, "default")
    RedisFleet(client).announce(a_card("w1", MODEL))
    RedisFleet(client).announce(a_card("w2", MODEL))
    unserved_model = ledger.create(a_job("one").model_copy(update={"model": "nobodys"})).new.model
    assert overviews.read().workers == {
        ("ingest", MODEL): 0,
        ("query", MODEL): 2,
        ("ingest", unserved_model): 0,
        ("query", unserved_model): 0,
        ("ingest", "default"): 0,
        ("query", "default"): 0,
    }


def test_redis_that_is_away_is_unavailable(absent_redis: "redis.Redis") -> None:
    with pytest.raises(Unavailable):
        RedisOverviews(absent_redis, MODEL).read()
