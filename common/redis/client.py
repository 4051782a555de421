"""Redis clients, and the translation of redis-py errors into `RedisUnavailable`.

Redis is unavailable while it cannot be reached, while it loads its data, and while it refuses
commands that it will accept later: it is a replica, its memory or its disk is full, it waits for
replicas. redis-py, kombu and Celery treat each of these as a connection error: the connection is
closed, the next one goes to the address that is valid then, and the caller retries. At any other
error of Redis, Celery's worker ends by default.
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

# The first words of the errors with which Redis refuses a command temporarily. LOADING is not
# listed: redis-py itself raises a connection error for it.
TEMPORARY_REFUSALS = ("READONLY", "OOM", "MISCONF", "NOREPLICAS", "MASTERDOWN", "UNBLOCKED", "BUSY")
SENTINEL_TIMEOUT_S = 1.0  # of one Sentinel; the next one is asked after it


class TemporarilyRefused(redis.ConnectionError):
    """Redis answers, and refuses a command that it will accept later."""


# redis-py looks up here which exception to raise for an error of the server. It has no option.
DefaultParser.EXCEPTION_CLASSES.update(dict.fromkeys(TEMPORARY_REFUSALS, TemporarilyRefused))


class RedisUnavailable(Unavailable):
    """Redis cannot be reached, or refuses a command temporarily. A later call may succeed."""


class RedisRefuses(RedisUnavailable):
    """Redis rejects our configuration (credentials, TLS, database).

    `detail` names the setting to change.
    """


def speaks_tls_to(settings: Settings) -> bool:
    """Whether `CLIPFLEET_REDIS_URL` asks for TLS."""
    return settings.redis_url.startswith(("rediss:", "rediss+"))


def tls_options(settings: Settings) -> dict[str, Any]:
    """TLS options for redis-py and kombu: certificates and host names are verified.

    Empty when the settings do not ask for TLS.
    """
    if not speaks_tls_to(settings):
        return {}
    verified = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return {**verified, "ssl_ca_certs": settings.redis_ca or None}


def sentinel_options(settings: Settings, address: SentinelAddress) -> dict[str, Any]:
    """Options with which redis-py and kombu connect to the Sentinels themselves.

    `retry` is None: otherwise redis-py asks a Sentinel that is away four times, with pauses, before
    the next one.
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
    """Create a client of the server that accepts writes. It connects at the first call.

    A call ends within twice `call_timeout_s`, with or without success. With Sentinels, each
    Sentinel that is away adds up to one second.

    Raises:
        ValueError: `CLIPFLEET_REDIS_URL` is not a valid address. The text of the error may contain
            a part of the password.
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
    """Create a client for an event loop; otherwise as `make_redis`.

    Args:
        timeout_s: timeout of one command, seconds. It must be longer than the wait of blocking
            commands such as BLPOP.
    """
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
    """A client of the primary, created by redis-py's `Sentinel`, which has no type annotations."""
    sentinels = sentinel(address.nodes, sentinel_kwargs=sentinel_options(settings, address))
    where = {"ssl": address.tls, "db": address.database, **address.credentials}
    return sentinels.master_for(address.service, **where, **options)


def close_redis(client: "redis.Redis") -> None:
    """Close the connections of a client, including those to Sentinels."""
    client.close()
    if isinstance(client.connection_pool, redis.sentinel.SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            sentinel.close()


async def close_async_redis(client: "redis.asyncio.Redis") -> None:
    """Close the connections of an event loop's client, including those to Sentinels."""
    await client.aclose()
    if isinstance(client.connection_pool, redis.asyncio.sentinel.SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


async def forget_connections(client: "redis.asyncio.Redis") -> None:
    """Close a client's connections, so that the next command opens a new one.

    A connection of redis.asyncio reads the CA certificates once, however often it connects: only a
    new connection sees a new file.
    """
    pool: Any = client.connection_pool
    await pool.disconnect()
    pool.reset()


@contextmanager
def translating_redis_errors() -> Iterator[None]:
    """Context in which `redis.RedisError` becomes `RedisUnavailable` or `RedisRefuses`.

    Errors that mean a wrong command are raised unchanged.

    Example:
        with translating_redis_errors():
            client.get("key")
    """
    try:
        yield
    except redis.RedisError as error:
        if (unavailable := as_unavailable(error)) is None:
            raise
        raise unavailable from error


def as_unavailable(error: redis.RedisError) -> RedisUnavailable | None:
    """Translate an error of redis-py. None when the command is wrong and Redis is available."""
    if reason := _rejection(error):
        return RedisRefuses(reason)
    if isinstance(error, TemporarilyRefused) or _contains_refusal(error):
        return RedisUnavailable(f"Redis does not accept writes at the moment: {error}")
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return RedisUnavailable("Redis is loading its data; try again")
    if isinstance(error, redis.sentinel.MasterNotFoundError):
        return RedisUnavailable("the Sentinels in CLIPFLEET_REDIS_URL know no primary; try again")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return RedisUnavailable("Redis does not answer; try again")
    return None


def redis_time(client: "redis.Redis") -> float:
    """The time in unix seconds by Redis' clock, which all parts share.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    with translating_redis_errors():
        seconds, micros = client.time()
    return float(seconds) + float(micros) / 1e6


def _contains_refusal(error: redis.RedisError) -> bool:
    """Whether a transaction, or with Redis 6 a script, was refused: the text holds the reason."""
    return isinstance(error, redis.exceptions.ExecAbortError) or (
        isinstance(error, redis.ResponseError)
        and any(f"{code} " in str(error) for code in TEMPORARY_REFUSALS)
    )


def _rejection(error: redis.RedisError) -> str:
    """Why Redis rejects our configuration, and which setting to change; "" when it does not."""
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return f"Redis refuses the user or the password in CLIPFLEET_REDIS_URL: {error}"
    if isinstance(error, redis.exceptions.NoPermissionError):
        return f"Redis denies permission to the user named in CLIPFLEET_REDIS_URL: {error}"
    if "DB index is out of range" in str(error):
        return "Redis has no database with the number at the end of CLIPFLEET_REDIS_URL"
    verification = _verification_error(error)
    if verification is None:
        return ""
    if "mismatch" in verification.verify_message:
        return "the certificate of Redis is not for the host in CLIPFLEET_REDIS_URL"
    if "expired" in verification.verify_message:
        return "the certificate of Redis has expired"
    return (
        "the certificate of Redis is not signed by a trusted authority; set CLIPFLEET_REDIS_CA to "
        "the CA certificate (PEM) used to verify the Redis server"
    )


def _verification_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The TLS error in the chain of causes; redis-py raises its own error in its place.

    The search ends at an error of clipfleet: the errors behind it belong to another part, and their
    chain may be a ring, since pymilvus raises errors from themselves.
    """
    while error is not None and not isinstance(error, Unavailable):
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None
