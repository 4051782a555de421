"""The connection to Redis, and what its silence is called."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from clipfleet.common.errors import Unavailable
from clipfleet.common.settings import Settings


class RedisUnavailable(Unavailable):
    """Redis did not answer in time."""


class RedisRefuses(RedisUnavailable):
    """Redis is there and will not have us as we are set up. It says what to set otherwise."""


def tls_options(settings: Settings) -> dict[str, Any]:
    """What redis-py and kombu want to know beside the address; empty without TLS."""
    if not settings.redis_url.startswith("rediss:"):
        return {}
    verified = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    return {**verified, "ssl_ca_certs": settings.redis_ca or None}


def make_redis(settings: Settings) -> "redis.Redis":
    """A client whose every call ends within twice `call_timeout_s`, one way or the other."""
    return redis.Redis.from_url(
        settings.redis_url,
        socket_timeout=settings.call_timeout_s,
        socket_connect_timeout=settings.call_timeout_s,
        retry=Retry(NoBackoff(), 1),  # once more: the pool may hold a connection that died
        **tls_options(settings),
    )


def make_async_redis(settings: Settings, timeout_s: float) -> "redis.asyncio.Redis":
    url, tls = settings.redis_url, tls_options(settings)
    return redis.asyncio.from_url(url, socket_timeout=timeout_s, **tls)


@contextmanager
def answering() -> Iterator[None]:
    """RedisUnavailable in place of redis-py's own errors for a server that is away, full, or not
    willing to have us."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        if why := _refusal(error):
            raise RedisRefuses(why) from error
        raise RedisUnavailable("Redis does not answer just now; try again") from error
    except redis.ResponseError as error:
        if why := _refusal(error):
            raise RedisRefuses(why) from error
        if not _refuses_writes(error):
            raise
        raise RedisUnavailable(f"Redis takes no writes just now: {error}") from error


def redis_time(client: "redis.Redis") -> float:
    """Unix seconds by Redis' clock, the one that all parts share."""
    with answering():
        seconds, micros = client.time()
    return float(seconds) + float(micros) / 1e6


def _refuses_writes(error: redis.ResponseError) -> bool:
    """Out of memory, out of disk, or a replica: it passes when somebody makes room."""
    refusals = (
        redis.exceptions.OutOfMemoryError,
        redis.ReadOnlyError,
        redis.exceptions.ExecAbortError,
    )
    return isinstance(error, refusals) or "MISCONF" in str(error) or "OOM" in str(error)


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
