"""What must be so of Redis, Milvus and the blobs, or nothing works or data is lost.

Plain functions: each returns what it found, nothing when all is well, and raises Unavailable while
what it asks is away. Every part makes them when it starts (common/process/startup.py).
"""

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import redis

from clipfleet.common.blobs import Blobs
from clipfleet.common.process.deployment import (
    MARKED,
    DeploymentMarker,
    MarkedBlobs,
    is_same_deployment,
)
from clipfleet.common.redis.client import (
    RedisRefuses,
    RedisUnavailable,
    make_redis,
    sentinel_options,
    translating_redis_errors,
)
from clipfleet.common.redis.sentinel import sentinel_address
from clipfleet.common.settings import Settings
from clipfleet.common.store import Store, StoreRefuses
from clipfleet.common.store.milvus import make_store
from clipfleet.common.tls import UnusableAuthority, is_plain_redis, require_authority, speaks_tls

OLDEST_REDIS = (6, 0)  # access lists, and scripts that ask for the time before they write
OLDEST_MILVUS = (2, 3)  # the oldest that is tested


@dataclass(frozen=True)
class Finding:
    """`error`: would lose data or can never work. `what` is a sentence without its full stop."""

    part: str
    what: str
    do: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.what}; {self.do}" if self.do else self.what


Check = Callable[[], list[Finding]]

UNVERIFIED = Finding(
    "redis",
    "CLIPFLEET_REDIS_URL has options of TLS (ssl_...), which could switch verification off",
    "leave them out; CLIPFLEET_REDIS_CA names an authority of your own",
)
NO_ADDRESS = Finding(
    "redis",
    "CLIPFLEET_REDIS_URL is no address of a Redis",
    "it reads redis://user:password@host:port/database, or "
    "redis+sentinel://user:password@host:port,host:port/service/database, with @ / : # of the "
    "password as %40 %2F %3A %23",
)


def service_checks(settings: Settings) -> list[Check]:
    """Of Redis and Milvus, each by itself and as a pair."""
    if "ssl_" in settings.redis_url.partition("?")[2]:
        return [_always(UNVERIFIED)]
    try:
        client, store = make_redis(settings), make_store(settings, settings.call_timeout_s)
    except ValueError:  # its text may hold a part of the password
        return [_always(NO_ADDRESS)]
    return [
        lambda: check_redis(settings, client),
        lambda: check_milvus(store),
        lambda: check_same_milvus(client, store),
    ]


def blob_checks(settings: Settings) -> list[Check]:
    try:
        blobs = Blobs(settings.blobs)
    except (ValueError, ImportError) as error:
        return [_always(Finding("blobs", f"CLIPFLEET_BLOBS: {error}", ""))]
    try:
        client = make_redis(settings)
    except ValueError:
        return []  # service_checks says it
    return [lambda: check_same_blobs(client, blobs)]


def _always(finding: Finding) -> Check:
    return lambda: [finding]


def check_redis(settings: Settings, client: "redis.Redis") -> list[Finding]:
    if settings.redis_ca:
        try:
            require_authority(settings.redis_ca)
        except UnusableAuthority as error:
            return [Finding("redis", f"CLIPFLEET_REDIS_CA: {error}", "")]
    try:
        told = _info(client)
    except RedisRefuses as error:
        return [Finding("redis", error.detail, "")]
    except RedisUnavailable:
        if why := _wrong_scheme(settings.redis_url):
            return [Finding("redis", *why)]
        if refusal := _refusal_of_sentinels(settings):
            return [Finding("redis", refusal, "")]
        raise
    return [*_kind(told), *_eviction(told), *_persistence(told)]


def check_milvus(store: Store) -> list[Finding]:
    try:
        said = store.version()
        store.ping()  # a version is told to anyone, a database only to its users
    except StoreRefuses as error:
        return [Finding("milvus", error.detail, "")]
    number = re.search(r"(\d+)\.(\d+)", said)
    if said.startswith("milvus_lite") or not number:  # Lite, or nothing that could be compared
        return []
    if (int(number[1]), int(number[2])) >= OLDEST_MILVUS:
        return []
    return [
        Finding("milvus", f"Milvus {said} is too old", f"use {_dotted(OLDEST_MILVUS)} or newer")
    ]


def check_same_milvus(client: "redis.Redis", store: Store) -> list[Finding]:
    """Refusals are check_milvus' to find."""
    try:
        names = "CLIPFLEET_MILVUS_URI and CLIPFLEET_MILVUS_DATABASE"
        return _same(client, "milvus", store, "Milvus", names)
    except (StoreRefuses, RedisRefuses):
        return []


def check_same_blobs(client: "redis.Redis", blobs: Blobs) -> list[Finding]:
    try:
        return _same(client, "blobs", MarkedBlobs(blobs), "blob store", "CLIPFLEET_BLOBS")
    except RedisRefuses:
        return []


def _same(
    client: "redis.Redis", name: str, place: DeploymentMarker, called: str, setting: str
) -> list[Finding]:
    if is_same_deployment(client, name, place):
        return []
    what = f"this {called} is not the one that the other parts on this Redis use"
    anew = f"`redis-cli HDEL {MARKED} {name}` if it was replaced on purpose"
    return [Finding(name, what, f"give all parts the same {setting}, or run {anew}")]


def _info(client: "redis.Redis") -> dict[str, Any] | None:
    """None when its user may not ask."""
    with translating_redis_errors():
        client.ping()
        try:
            told: dict[str, Any] = client.info()
            return told
        except redis.exceptions.NoPermissionError:
            return None


def _kind(told: dict[str, Any] | None) -> list[Finding]:
    if told is None:
        return []
    version = str(told.get("redis_version", ""))
    found = []
    number = re.match(r"(\d+)\.(\d+)", version)
    if number and (int(number[1]), int(number[2])) < OLDEST_REDIS:
        do = f"use {_dotted(OLDEST_REDIS)} or newer, or Valkey"
        found.append(Finding("redis", f"Redis {version} is too old", do))
    if "cluster" in (told.get("redis_mode"), told.get("server_mode")):
        do = "use one server, with replicas if need be"
        found.append(Finding("redis", "Redis Cluster is not supported", do))
    return found


def _eviction(told: dict[str, Any] | None) -> list[Finding]:
    """Redis may throw away jobs when its memory is full, unless it is told not to."""
    do = "set maxmemory-policy to noeviction (`redis-cli CONFIG SET maxmemory-policy noeviction`)"
    policy = (told or {}).get("maxmemory_policy")
    if policy is None:
        what = "whether Redis may evict jobs could not be checked: its user may not use INFO"
        return [Finding("redis", what, "see that maxmemory-policy is noeviction", "warning")]
    if policy == "noeviction":
        return []
    if not (told or {}).get("maxmemory"):
        what = f"Redis has maxmemory-policy {policy} and would evict jobs if it had a maxmemory"
        return [Finding("redis", what, do, "warning")]
    if policy.startswith("volatile-"):  # jobs never expire, so they stay
        what = f"Redis may forget answers and who is alive when it is full: {policy}"
        return [Finding("redis", what, do, "warning")]
    return [Finding("redis", f"Redis evicts jobs when it is full: maxmemory-policy {policy}", do)]


def _persistence(told: dict[str, Any] | None) -> list[Finding]:
    if told is None or told.get("aof_enabled"):
        return []
    what = "Redis has no append-only file: when it restarts, the last jobs and collections may miss"
    return [Finding("redis", what, "set appendonly yes", "warning")]


def _refusal_of_sentinels(settings: Settings) -> str:
    """Why a Sentinel will not have us; empty when none says so. redis-py says only that it found no
    primary."""
    address = sentinel_address(settings.redis_url)
    if address is None:
        return ""
    for host, port in address.nodes:
        options = sentinel_options(settings, address)
        with closing(redis.Redis(host, port, **options)) as client:
            try:
                with translating_redis_errors():
                    client.ping()
            except RedisRefuses as error:
                return f"the Sentinel at {host}:{port}: {error.detail}"
            except RedisUnavailable:
                continue
    return ""


def _wrong_scheme(url: str) -> tuple[str, str] | None:
    scheme, host, port = _first_address(url)
    if scheme in ("redis", "redis+sentinel") and speaks_tls(host, port):
        do = f"CLIPFLEET_REDIS_URL must begin with {scheme.replace('redis', 'rediss')}://"
        return f"Redis at {host}:{port} speaks TLS", do
    if scheme in ("rediss", "rediss+sentinel") and is_plain_redis(host, port):
        do = f"CLIPFLEET_REDIS_URL must begin with {scheme.replace('rediss', 'redis')}://"
        return f"Redis at {host}:{port} speaks no TLS", do
    return None


def _first_address(url: str) -> tuple[str, str, int]:
    """The scheme, and the host and port of Redis or of the first Sentinel."""
    scheme = url.partition("://")[0]
    if address := sentinel_address(url):
        return scheme, *address.nodes[0]
    parts = urlsplit(url)
    return scheme, parts.hostname or "127.0.0.1", parts.port or 6379


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
