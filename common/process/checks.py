"""Checks of Redis, Milvus and the blob store: versions, settings that lose data, credentials.

Each check is a plain function that returns its findings, none when all is well, and raises
Unavailable while the service is away. Every part runs them when it starts
(`common/process/startup.py`).
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

OLDEST_REDIS = (6, 0)  # needed: access lists, and scripts that read the time before they write
OLDEST_MILVUS = (2, 3)  # the oldest version that is tested


@dataclass(frozen=True)
class Finding:
    """A problem with the configuration of a service.

    Attributes:
        part: "redis", "milvus" or "blobs".
        what: the problem, a sentence without a full stop.
        do: what to do about it; "" when `what` says it.
        severity: "error" when data would be lost or nothing can work; the process then ends.
    """

    part: str
    what: str
    do: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.what}; {self.do}" if self.do else self.what


Check = Callable[[], list[Finding]]

UNVERIFIED = Finding(
    "redis",
    "CLIPFLEET_REDIS_URL has TLS options (ssl_...), which can switch verification off",
    "remove them, and set CLIPFLEET_REDIS_CA if Redis has a certificate of your own authority",
)
NO_ADDRESS = Finding(
    "redis",
    "CLIPFLEET_REDIS_URL is not an address of Redis",
    "use redis://user:password@host:port/database, or "
    "redis+sentinel://user:password@host:port,host:port/service/database, and write @ / : # in "
    "the password as %40 %2F %3A %23",
)


def service_checks(settings: Settings) -> list[Check]:
    """The checks of Redis and Milvus, and of whether they belong to the same deployment."""
    if "ssl_" in settings.redis_url.partition("?")[2]:
        return [_always(UNVERIFIED)]
    try:
        client, store = make_redis(settings), make_store(settings, settings.call_timeout_s)
    except ValueError:  # its text may contain a part of the password
        return [_always(NO_ADDRESS)]
    return [
        lambda: check_redis(settings, client),
        lambda: check_milvus(store),
        lambda: check_same_milvus(client, store),
    ]


def blob_checks(settings: Settings) -> list[Check]:
    """The checks of the blob store."""
    try:
        blobs = Blobs(settings.blobs)
    except (ValueError, ImportError) as error:
        return [_always(Finding("blobs", f"CLIPFLEET_BLOBS: {error}", ""))]
    try:
        client = make_redis(settings)
    except ValueError:
        return []  # service_checks reports it
    return [lambda: check_same_blobs(client, blobs)]


def _always(finding: Finding) -> Check:
    return lambda: [finding]


def check_redis(settings: Settings, client: "redis.Redis") -> list[Finding]:
    """Check that Redis accepts our configuration, is new enough, and does not lose jobs.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    if settings.redis_ca:
        try:
            require_authority(settings.redis_ca)
        except UnusableAuthority as error:
            return [Finding("redis", f"CLIPFLEET_REDIS_CA: {error}", "")]
    try:
        info = _info(client)
    except RedisRefuses as error:
        return [Finding("redis", error.detail, "")]
    except RedisUnavailable:
        if problem := _scheme_problem(settings.redis_url):
            return [Finding("redis", *problem)]
        if rejection := _sentinel_problem(settings):
            return [Finding("redis", rejection, "")]
        raise
    return [*_server_findings(info), *_eviction_findings(info), *_persistence_findings(info)]


def check_milvus(store: Store) -> list[Finding]:
    """Check that Milvus accepts our configuration and is new enough.

    Raises:
        StoreUnavailable: Milvus does not answer.
    """
    try:
        version = store.version()
        store.ping()  # Milvus gives its version to everyone, its collections only to its users
    except StoreRefuses as error:
        return [Finding("milvus", error.detail, "")]
    number = re.search(r"(\d+)\.(\d+)", version)
    if version.startswith("milvus_lite") or not number:  # Lite has versions of its own
        return []
    if (int(number[1]), int(number[2])) >= OLDEST_MILVUS:
        return []
    return [
        Finding("milvus", f"Milvus {version} is too old", f"use {_dotted(OLDEST_MILVUS)} or newer")
    ]


def check_same_milvus(client: "redis.Redis", store: Store) -> list[Finding]:
    """Check that this Milvus is the one that the other parts on this Redis use.

    A rejected configuration is not reported here: `check_milvus` reports it.
    """
    try:
        names = "CLIPFLEET_MILVUS_URI and CLIPFLEET_MILVUS_DATABASE"
        return _same_findings(client, "milvus", store, "Milvus", names)
    except (StoreRefuses, RedisRefuses):
        return []


def check_same_blobs(client: "redis.Redis", blobs: Blobs) -> list[Finding]:
    """Check that this blob store is the one that the other parts on this Redis use."""
    try:
        return _same_findings(client, "blobs", MarkedBlobs(blobs), "blob store", "CLIPFLEET_BLOBS")
    except RedisRefuses:
        return []


def _same_findings(
    client: "redis.Redis", name: str, place: DeploymentMarker, called: str, setting: str
) -> list[Finding]:
    if is_same_deployment(client, name, place):
        return []
    what = f"this {called} is not the one that the other parts on this Redis use"
    reset = f"`redis-cli HDEL {MARKED} {name}` if you replaced it on purpose"
    return [Finding(name, what, f"give all parts the same {setting}, or run {reset}")]


def _info(client: "redis.Redis") -> dict[str, Any] | None:
    """The answer of INFO; None when the user has no permission for it."""
    with translating_redis_errors():
        client.ping()
        try:
            info: dict[str, Any] = client.info()
            return info
        except redis.exceptions.NoPermissionError:
            return None


def _server_findings(info: dict[str, Any] | None) -> list[Finding]:
    if info is None:
        return []
    version = str(info.get("redis_version", ""))
    findings = []
    number = re.match(r"(\d+)\.(\d+)", version)
    if number and (int(number[1]), int(number[2])) < OLDEST_REDIS:
        do = f"use {_dotted(OLDEST_REDIS)} or newer, or Valkey"
        findings.append(Finding("redis", f"Redis {version} is too old", do))
    if "cluster" in (info.get("redis_mode"), info.get("server_mode")):
        do = "use one server, with replicas if you need them"
        findings.append(Finding("redis", "Redis Cluster is not supported", do))
    return findings


def _eviction_findings(info: dict[str, Any] | None) -> list[Finding]:
    """With a policy other than noeviction, Redis deletes jobs when its memory is full."""
    do = "set maxmemory-policy to noeviction (`redis-cli CONFIG SET maxmemory-policy noeviction`)"
    policy = (info or {}).get("maxmemory_policy")
    if policy is None:
        what = "the maxmemory-policy of Redis is unknown, since the user has no permission for INFO"
        return [Finding("redis", what, "make sure that it is noeviction", "warning")]
    if policy == "noeviction":
        return []
    if not (info or {}).get("maxmemory"):
        what = f"Redis has maxmemory-policy {policy} and would evict jobs if maxmemory were set"
        return [Finding("redis", what, do, "warning")]
    if policy.startswith("volatile-"):  # jobs never expire, so Redis keeps them
        what = f"Redis evicts replies and announcements of workers when it is full: {policy}"
        return [Finding("redis", what, do, "warning")]
    return [Finding("redis", f"Redis evicts jobs when it is full: maxmemory-policy {policy}", do)]


def _persistence_findings(info: dict[str, Any] | None) -> list[Finding]:
    if info is None or info.get("aof_enabled"):
        return []
    what = "Redis has no append-only file, so a restart can lose the latest jobs and collections"
    return [Finding("redis", what, "set appendonly yes", "warning")]


def _sentinel_problem(settings: Settings) -> str:
    """Why a Sentinel rejects our configuration; "" when none does.

    Asks each Sentinel: redis-py only says that it found no primary.
    """
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


def _scheme_problem(url: str) -> tuple[str, str] | None:
    """What is wrong and what to do, when only one of the URL and the server uses TLS."""
    scheme, host, port = _first_address(url)
    if scheme in ("redis", "redis+sentinel") and speaks_tls(host, port):
        do = f"CLIPFLEET_REDIS_URL must begin with {scheme.replace('redis', 'rediss')}://"
        return f"Redis at {host}:{port} uses TLS", do
    if scheme in ("rediss", "rediss+sentinel") and is_plain_redis(host, port):
        do = f"CLIPFLEET_REDIS_URL must begin with {scheme.replace('rediss', 'redis')}://"
        return f"Redis at {host}:{port} does not use TLS", do
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
