"""Redis clients, and the one place that decides when Redis is away.

Redis is away while it cannot be reached, while it loads its data, and while it refuses commands
that it will take later: it is a replica, its memory or its disk is full, it waits for replicas. All
of these are connection errors, of redis-py and so of kombu and Celery: the connection is closed,
the next one goes to the address that is right by then, and everybody waits and tries again. At
another error of Redis Celery's worker ends by default.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import DefaultParser
from redis.retry import Retry

from clipfleet.common.errors import Unavailable
from clipfleet.common.redis.sentinel import SentinelAddress, sentinel_address
from clipfleet.common.settings import Settings

# The first words of the errors with which Redis refuses for the moment. LOADING is one, too, and a
# connection error of redis-py as it stands.
REFUSALS_FOR_NOW = ("READONLY", "OOM", "MISCONF", "NOREPLICAS", "MASTERDOWN", "UNBLOCKED", "BUSY")
SENTINEL_TIMEOUT_S = 1.0  # each is asked in turn, and any of them knows


class RefusedForNow(redis.ConnectionError):
    """Redis answers and refuses a command that it will take later."""


# redis-py reads here which exception an error of the server is. It has no option for that.
DefaultParser.EXCEPTION_CLASSES.update(dict.fromkeys(REFUSALS_FOR_NOW, RefusedForNow))


class RedisUnavailable(Unavailable):
    """Redis is away."""


class RedisRefuses(RedisUnavailable):
    """Redis is there and will not have us as we are set up. It says what to set otherwise."""


def speaks_tls_to(settings: Settings) -> bool:
    """Whether the settings ask for TLS to Redis."""
    return settings.redis_url.startswith(("rediss:", "rediss+"))


def tls_options(settings: Settings) -> dict[str, Any]:
    """What redis-py and kombu want to know beside the address; empty without TLS."""
    if not speaks_tls_to(settings):
        return {}
    verified = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return {**verified, "ssl_ca_certs": settings.redis_ca or None}


def sentinel_options(settings: Settings, address: SentinelAddress) -> dict[str, Any]:
    """How redis-py and kombu connect to the Sentinels themselves.

    Without a retry: redis-py would ask one that is away four times, with pauses, before the next.
    """
    timeout_s = min(SENTINEL_TIMEOUT_S, settings.call_timeout_s)
    return {
        "retry": None,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "ssl": address.tls,
        **tls_options(settings),
        **address.sentinel_credentials,
    }


def make_redis(settings: Settings) -> "redis.Redis":
    """A client of the server that takes writes.

    Every call ends within twice `call_timeout_s`, one way or the other. Behind Sentinels it takes
    up to a second more for each of them that is away.

    Raises:
        ValueError: the address is none. The text may hold a part of the password.
    """
    options: dict[str, Any] = {
        "socket_timeout": settings.call_timeout_s,
        "socket_connect_timeout": settings.call_timeout_s,
        "retry": Retry(NoBackoff(), 1),  # once more: the pool may hold a connection that died
        **tls_options(settings),
    }
    if address := sentinel_address(settings.redis_url):
        client: redis.Redis = _primary(redis.sentinel.Sentinel, settings, address, options)
        return client
    return redis.Redis.from_url(settings.redis_url, **options)


def make_async_redis(settings: Settings, timeout_s: float) -> "redis.asyncio.Redis":
    """The same for an event loop. `timeout_s`: of the commands that wait for something."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": settings.call_timeout_s,
        "retry": AsyncRetry(NoBackoff(), 1),
        **tls_options(settings),
    }
    if address := sentinel_address(settings.redis_url):
        sentinel = redis.asyncio.sentinel.Sentinel
        client: redis.asyncio.Redis = _primary(sentinel, settings, address, options)
        return client
    return redis.asyncio.from_url(settings.redis_url, **options)


def _primary(
    sentinel: Any, settings: Settings, address: SentinelAddress, options: dict[str, Any]
) -> Any:
    """A client of the primary, by redis-py's class for Sentinels, which has no types."""
    sentinels = sentinel(address.nodes, sentinel_kwargs=sentinel_options(settings, address))
    where = {"ssl": address.tls, "db": address.database, **address.credentials}
    return sentinels.master_for(address.service, **where, **options)


def close_redis(client: "redis.Redis") -> None:
    """Close a client's connections, those to Sentinels too."""
    client.close()
    if isinstance(client.connection_pool, redis.sentinel.SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            sentinel.close()


async def close_async_redis(client: "redis.asyncio.Redis") -> None:
    """The same for an event loop's client."""
    await client.aclose()
    if isinstance(client.connection_pool, redis.asyncio.sentinel.SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


async def forget_connections(client: "redis.asyncio.Redis") -> None:
    """Close a client's connections, and open new ones for what comes next.

    One of redis.asyncio reads the certificates of the authority once, however often it connects.
    """
    pool: Any = client.connection_pool
    await pool.disconnect()
    pool.reset()


@contextmanager
def translating_redis_errors() -> Iterator[None]:
    """RedisUnavailable in place of redis-py's errors for a Redis that is away, and RedisRefuses for
    one that is not willing to have us."""
    try:
        yield
    except redis.RedisError as error:
        if (unavailable := as_unavailable(error)) is None:
            raise
        raise unavailable from error


def as_unavailable(error: redis.RedisError) -> RedisUnavailable | None:
    """What an error of redis-py means, or None when Redis is not away: the command is wrong."""
    if why := _refusal(error):
        return RedisRefuses(why)
    if isinstance(error, RefusedForNow) or _is_refused_within(error):
        return RedisUnavailable(f"Redis takes no writes just now: {error}")
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return RedisUnavailable("Redis is loading its data; try again")
    if isinstance(error, redis.sentinel.MasterNotFoundError):
        return RedisUnavailable("the Sentinels in CLIPFLEET_REDIS_URL name no primary just now")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return RedisUnavailable("Redis does not answer just now; try again")
    return None


def redis_time(client: "redis.Redis") -> float:
    """Unix seconds by Redis' clock, the one that all parts share."""
    with translating_redis_errors():
        seconds, micros = client.time()
    return float(seconds) + float(micros) / 1e6


def _is_refused_within(error: redis.RedisError) -> bool:
    """A transaction, or with Redis 6 a script, that was refused: the reason is inside the text."""
    return isinstance(error, redis.exceptions.ExecAbortError) or (
        isinstance(error, redis.ResponseError)
        and any(f"{code} " in str(error) for code in REFUSALS_FOR_NOW)
    )


def _refusal(error: redis.RedisError) -> str:
    """Why Redis will not have us however often we ask, and what to do; empty when it may yet."""
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return f"Redis refuses the user or the password in CLIPFLEET_REDIS_URL: {error}"
    if isinstance(error, redis.exceptions.NoPermissionError):
        return f"Redis does not let the user in CLIPFLEET_REDIS_URL: {error}"
    if "DB index is out of range" in str(error):
        return "Redis has no database of the number at the end of CLIPFLEET_REDIS_URL"
    distrust = _distrust(error)
    if distrust is None:
        return ""
    if "mismatch" in distrust.verify_message:
        return "the certificate of Redis is for another host than CLIPFLEET_REDIS_URL names"
    if "expired" in distrust.verify_message:
        return "the certificate of Redis has expired"
    return (
        "the certificate of Redis is not signed by an authority trusted here; "
        "CLIPFLEET_REDIS_CA names the file with the certificate of its authority"
    )


def _distrust(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """What TLS said, which redis-py hides behind a sentence of its own.

    Behind an error of ours begins that of another part. Its chain may be a ring: pymilvus raises
    errors from themselves.
    """
    while error is not None and not isinstance(error, Unavailable):
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None
