"""The rate limit of a key, in memory and on Redis."""

import threading

import pytest
import redis

from clipfleet.common.auth.rate_limit import ROOT, MemoryRateLimiter, RateLimiter, RedisRateLimiter
from clipfleet.common.redis.client import RedisUnavailable
from support.ledgers import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.25)


@pytest.fixture(params=["memory", "redis"])
def limiter(request: pytest.FixtureRequest, clock: Clock) -> RateLimiter:
    if request.param == "memory":
        return MemoryRateLimiter(clock)
    return RedisRateLimiter(request.getfixturevalue("client"), clock)


def test_a_minutes_requests_may_come_at_once(limiter: RateLimiter) -> None:
    limits = [limiter.take("shop", 3) for _ in range(5)]
    assert [limit.allowed for limit in limits] == [True, True, True, False, False]
    assert [limit.remaining for limit in limits] == [2, 1, 0, 0, 0]
    assert [limit.reset_after_s for limit in limits] == [20, 40, 60, 60, 60]
    assert [limit.retry_after_s for limit in limits[2:]] == [20, 20, 20]


def test_who_waits_as_long_as_it_was_told_is_served(limiter: RateLimiter, clock: Clock) -> None:
    for _ in range(3):
        limiter.take("shop", 3)
    clock.now += 19.5
    assert not limiter.take("shop", 3).allowed
    clock.now += 0.5
    assert limiter.take("shop", 3).allowed
    assert not limiter.take("shop", 3).allowed


def test_a_minute_of_silence_fills_the_bucket_and_no_more(
    limiter: RateLimiter, clock: Clock
) -> None:
    limiter.take("shop", 2)
    clock.now += 3_600
    assert [limiter.take("shop", 2).allowed for _ in range(3)] == [True, True, False]


def test_each_has_a_bucket_of_its_own(limiter: RateLimiter) -> None:
    assert [limiter.take(who, 1).allowed for who in ("a", "b", "a")] == [True, True, False]


def test_a_limit_that_was_lowered_counts_at_once(limiter: RateLimiter) -> None:
    limiter.take("shop", 100)
    assert [limiter.take("shop", 2).allowed for _ in range(3)] == [True, True, False]


def test_a_clock_that_goes_back_gives_nothing(limiter: RateLimiter, clock: Clock) -> None:
    limiter.take("shop", 1)
    clock.now -= 600
    assert not limiter.take("shop", 1).allowed


def test_many_at_once_get_no_more_than_there_is(client: "redis.Redis") -> None:
    """Redis' clock decides for two limiters, as with two gateways."""
    limiters = [RedisRateLimiter(client), RedisRateLimiter(client)]
    granted: list[bool] = []

    def ask(limiter: RateLimiter) -> None:
        granted.extend(limiter.take("shop", 20).allowed for _ in range(20))

    threads = [threading.Thread(target=ask, args=[limiters[n % 2]]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 80
    assert 20 <= sum(granted) < 40, "what a few seconds add is far from a second minute's worth"


def test_a_bucket_goes_by_itself(client: "redis.Redis") -> None:
    RedisRateLimiter(client).take("shop", 5)
    assert 0 < client.ttl(f"{ROOT}shop") <= 61


def test_a_redis_that_is_away_is_said(absent_redis: "redis.Redis") -> None:
    with pytest.raises(RedisUnavailable):
        RedisRateLimiter(absent_redis).take("shop", 5)
