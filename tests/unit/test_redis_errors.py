"""What is said of Redis' errors does not depend on what else had gone wrong before."""

import ssl

import pytest
import redis

from clipfleet.common.redis.client import RedisRefuses, RedisUnavailable, translating_redis_errors
from clipfleet.common.store import StoreUnavailable


def ring() -> Exception:
    """As pymilvus leaves it: `raise error from error`."""
    error = RuntimeError("no answer")
    error.__cause__ = error
    return error


def distrust() -> Exception:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


def lose_redis_after(error: Exception) -> None:
    """A worker that waits for the store says so in Redis, which is away, too."""
    try:
        raise StoreUnavailable("the store is away") from error
    except StoreUnavailable:
        with translating_redis_errors():
            raise redis.ConnectionError("connection refused") from None


@pytest.mark.timeout(30)
@pytest.mark.parametrize("cause", [ring(), distrust()])
def test_a_store_that_was_away_first_is_not_looked_into(cause: Exception) -> None:
    with pytest.raises(RedisUnavailable) as error:
        lose_redis_after(cause)
    assert not isinstance(error.value, RedisRefuses)


def test_distrust_behind_the_error_of_redis_is_a_refusal() -> None:
    with pytest.raises(RedisRefuses, match="CLIPFLEET_REDIS_CA"), translating_redis_errors():
        raise redis.ConnectionError("connection refused") from distrust()
