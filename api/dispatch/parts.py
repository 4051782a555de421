"""The parts that a gateway talks to, and their implementations on Redis, Milvus and Celery."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from clipfleet.common.auth.rate_limit import RateLimiter, RedisRateLimiter
from clipfleet.common.blobs import Blobs
from clipfleet.common.ledger import Ledger
from clipfleet.common.ledger.catalogue import Catalogue, RedisCatalogue
from clipfleet.common.ledger.event_stream import EventStream
from clipfleet.common.ledger.redis import RedisLedger
from clipfleet.common.ledger.registered import RedisRegistry, Registry
from clipfleet.common.ledger.unfinished import RedisUnfinished, Unfinished
from clipfleet.common.ledger.unreadable import RedisUnreadable, Unreadable
from clipfleet.common.process.probe import Probe, RedisProbe
from clipfleet.common.queue.broker import CeleryPublisher, Publisher, make_celery
from clipfleet.common.queue.fleet import Fleet, RedisFleet
from clipfleet.common.queue.overview import Overviews, RedisOverviews
from clipfleet.common.queue.replies import Inbox, RedisInbox
from clipfleet.common.redis.client import (
    close_async_redis,
    close_redis,
    make_async_redis,
    make_redis,
)
from clipfleet.common.settings import Settings
from clipfleet.common.store import Store
from clipfleet.common.store.milvus import make_store


async def _nothing() -> None:
    return None


@dataclass(frozen=True)
class GatewayParts:
    """The parts of one gateway. Each is a port; `clipfleet.testing` has all of them in memory.

    Attributes:
        ledger: jobs and chunks.
        catalogue: the collections by name.
        registry: the sources that are registered with collections.
        fleet: the workers and planners that are alive.
        overviews: the numbers of the whole fleet, for metrics.
        limiter: counts the requests of each API key.
        store: embeddings.
        blobs: uploaded files and thumbnails.
        unfinished: uploads that have no job yet.
        unreadable: the images that migrations cannot copy.
        publisher: sends queries to the workers.
        inbox: receives the workers' answers.
        probe: the state of the Redis server that the parts share.
        event_stream: brings events about the objects of registered sources; None: there is none.
        close: closes the connections of all parts when the gateway stops.
    """

    ledger: Ledger
    catalogue: Catalogue
    registry: Registry
    fleet: Fleet
    overviews: Overviews
    limiter: RateLimiter
    store: Store
    blobs: Blobs
    unfinished: Unfinished
    unreadable: Unreadable
    publisher: Publisher
    inbox: Inbox
    probe: Probe
    event_stream: EventStream | None = None
    close: Callable[[], Awaitable[None]] = _nothing


def connect(settings: Settings) -> GatewayParts:
    """Return the parts on Redis, Milvus and Celery. Connections open at the first call."""
    client, receiver = make_redis(settings), make_async_redis(settings, timeout_s=10.0)
    publisher, blobs = CeleryPublisher(make_celery(settings), client), Blobs(settings.blobs)

    async def close() -> None:
        await close_async_redis(receiver)
        await asyncio.to_thread(publisher.close)
        await asyncio.to_thread(close_redis, client)

    return GatewayParts(
        ledger=RedisLedger(client, blobs=blobs),
        catalogue=RedisCatalogue(client),
        registry=RedisRegistry(client),
        fleet=RedisFleet(client),
        overviews=RedisOverviews(client, settings.model),
        limiter=RedisRateLimiter(client),
        store=make_store(settings, settings.call_timeout_s),
        blobs=blobs,
        unfinished=RedisUnfinished(client),
        unreadable=RedisUnreadable(client),
        publisher=publisher,
        inbox=RedisInbox(client, receiver),
        probe=RedisProbe(client, settings),
        event_stream=EventStream(client, settings.events_stream)
        if settings.events_stream
        else None,
        close=close,
    )
