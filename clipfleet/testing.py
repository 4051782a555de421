"""The whole service in one process, for tests of programs that use clipfleet.

    with MemoryService() as service, service.client() as client:
        client.index("photos", wait=True)
        assert client.search(image="photos/cat.jpg").matches

Gateway, planner and workers are the real ones. Their data is in memory, and a hash takes the place
of the model: no Redis, no Milvus, no Celery, no torch. docs/testing.md explains it.
"""

import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import uvicorn
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from clipfleet.api.app import create_app
from clipfleet.api.dispatch.parts import GatewayParts
from clipfleet.api.http.connections import Protocol
from clipfleet.client import AsyncClient, Client
from clipfleet.common.auth.keys import hash_of
from clipfleet.common.auth.rate_limit import MemoryRateLimiter
from clipfleet.common.blobs import Blobs
from clipfleet.common.fetch import Fetcher
from clipfleet.common.fetch.post import Poster
from clipfleet.common.http.fleet import LANES
from clipfleet.common.imaging.embedder import HASH_MODEL, Embedder, HashEmbedder
from clipfleet.common.ledger.catalogue import MemoryCatalogue, collection_names
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.registered import MemoryRegistry
from clipfleet.common.ledger.unfinished import MemoryUnfinished
from clipfleet.common.ledger.unreadable import MemoryUnreadable
from clipfleet.common.ledger.webhooks import MemoryWebhooks
from clipfleet.common.process.probe import MemoryProbe
from clipfleet.common.queue.broker import MemoryPublisher
from clipfleet.common.queue.fleet import CARD_S, MemoryFleet, WorkerCard
from clipfleet.common.queue.messages import IngestNudge, Message, QueryBatch, queue_name
from clipfleet.common.queue.overview import MemoryOverviews
from clipfleet.common.queue.replies import MemoryReplies
from clipfleet.common.settings import LOOPBACK_NAMES, Settings
from clipfleet.common.store.memory import MemoryStore
from clipfleet.workers.ingest.background import Background
from clipfleet.workers.ingest.chunk import IngestParts
from clipfleet.workers.ingest.claims import claim_next, ingest_next, pass_on, work_on
from clipfleet.workers.ingest.feeders import ThreadFeeders
from clipfleet.workers.ingest.fetch_pool import fetch_pool
from clipfleet.workers.ingest.prepare import Kit
from clipfleet.workers.planner.generation_source import Generations
from clipfleet.workers.planner.housekeeper import Housekeeper
from clipfleet.workers.planner.migrations import Migrator
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.planner.planner import run as run_planner
from clipfleet.workers.planner.tracking import TrackingParts
from clipfleet.workers.planner.webhooks import WebhookSender
from clipfleet.workers.query.batch import QueryParts, answer_batch
from clipfleet.workers.query.exact import Bounds
from clipfleet.workers.query.nouns import NounBanks
from clipfleet.workers.storage.locations import Storage

__all__ = [
    "HashEmbedder",
    "MemoryCatalogue",
    "MemoryFleet",
    "MemoryLedger",
    "MemoryOverviews",
    "MemoryParts",
    "MemoryProbe",
    "MemoryPublisher",
    "MemoryRateLimiter",
    "MemoryRegistry",
    "MemoryReplies",
    "MemoryService",
    "MemoryStore",
    "MemoryUnfinished",
    "memory_parts",
    "write_keys",
]

log = logging.getLogger(__name__)

THREADS = 4
NAME = "memory"  # of the planner and of the worker
POLL_S = 0.05
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class MemorySettings(Settings):
    """Settings that ignore the environment. An unknown name is an error."""

    model_config = SettingsConfigDict(extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


@dataclass(frozen=True)
class MemoryParts(GatewayParts):
    """The parts of a gateway in memory. Workers of the same process can share them."""

    ledger: MemoryLedger
    publisher: MemoryPublisher
    inbox: MemoryReplies


def memory_parts(settings: Settings, **parts: Any) -> MemoryParts:
    """Create parts in memory.

    Args:
        settings: `model` and `blobs` are used.
        parts: fields of `GatewayParts` to use in place of new ones.
    """
    every = {
        "ledger": MemoryLedger(),
        "catalogue": MemoryCatalogue(),
        "registry": MemoryRegistry(),
        "fleet": MemoryFleet(),
        "limiter": MemoryRateLimiter(),
        "store": MemoryStore(),
        "blobs": Blobs(settings.blobs),
        "unfinished": MemoryUnfinished(),
        "unreadable": MemoryUnreadable(),
        "publisher": MemoryPublisher(),
        "inbox": MemoryReplies(),
        "probe": MemoryProbe(),
        **parts,
    }
    sources = (every["ledger"], every["fleet"], every["publisher"])
    every.setdefault("overviews", MemoryOverviews(*sources, settings.model))
    return MemoryParts(**every)


def write_keys(file: Path, keys: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a keys file.

    Args:
        file: for the setting `keys_file`.
        keys: for each secret, the fields of a key as in docs/keys.md, without the hash. The
            default of `name` is `key-1` and so on, the default of `scopes` is ["admin"].
    """
    records = [
        {"name": f"key-{n}", "scopes": ["admin"], **key, "hash": hash_of(secret)}
        for n, (secret, key) in enumerate(keys.items(), 1)
    ]
    file.write_text(json.dumps({"keys": records}))


class MemoryService:
    """A clipfleet service on a free port of this machine, within a `with` statement.

    At the end of the statement all threads, files and ports are gone.

    Args:
        dim: the length of the embeddings of the `HashEmbedder`.
        embedder: another embedder in place of that one.
        more: embedders of further workers, by the name of their model, for migrations.
        api_keys: keys by secret, as for `write_keys`. Default: none, and none is needed.
        settings: fields of `clipfleet.common.settings.Settings`, such as
            `source_roots=[folder]` or `limits={"top_k": 10}`. The environment is not read.

    Attributes:
        url: the address of the service.
        folder: temporary folder with uploads and thumbnails, below `blobs`.
        parts: the parts in memory, to read or to change: `service.parts.ledger.jobs()`.
    """

    url: str
    folder: Path
    parts: MemoryParts

    def __init__(
        self,
        *,
        dim: int = 64,
        embedder: Embedder | None = None,
        more: Mapping[str, Embedder] | None = None,
        api_keys: Mapping[str, Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> None:
        self._embedder = embedder or HashEmbedder(dim)
        self._api_keys, self._overrides, self._more = api_keys, settings, dict(more or {})

    def __enter__(self) -> Self:
        self._stopping = threading.Event()
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="clipfleet-")))
            self.settings = self._make_settings()
            self.parts = memory_parts(self.settings)
            self._start_planner(stack)
            self._start_worker(stack, self.settings.model, self._embedder)
            for model, embedder in self._more.items():
                self._start_worker(stack, model, embedder)
            self._start_gateway(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self, api_key: str | None = None, **options: Any) -> Client:
        """A client of this service."""
        return Client(self.url, api_key=api_key, **options)

    def async_client(self, api_key: str | None = None, **options: Any) -> AsyncClient:
        """An asynchronous client of this service."""
        return AsyncClient(self.url, api_key=api_key, **options)

    def _make_settings(self) -> Settings:
        own: dict[str, Any] = {
            "model": f"{HASH_MODEL}{self._embedder.dim}",
            "blobs": str(self.folder / "blobs"),
            "allowed_hosts": LOOPBACK_NAMES,
            "stall_s": math.inf,  # the watchdog of a stalled worker would end this process
        }
        if self._api_keys is not None:
            write_keys(self.folder / "keys.json", self._api_keys)
            own["keys_file"] = str(self.folder / "keys.json")
        elif not self._overrides.get("open"):
            own["source_roots"] = (Path("/"),)  # as with `clipfleet up`
        return MemorySettings(**{**own, **self._overrides})

    def _start_planner(self, stack: ExitStack) -> None:
        parts, settings = self.parts, self.settings
        storage = self._make_storage(stack)
        generations = Generations(parts.catalogue, parts.store, parts.unreadable)
        tracking = TrackingParts(parts.ledger, parts.store, parts.catalogue, parts.blobs)
        planner = Planner(
            NAME,
            parts.ledger,
            parts.fleet,
            parts.publisher,
            settings,
            storage,
            tracking=tracking,
            generations=generations,
        )
        migrator = Migrator(parts.ledger, generations, storage, parts.blobs)
        names = partial(collection_names, parts.catalogue) if settings.keep_uploads else None
        keeper = Housekeeper(
            NAME, parts.ledger, parts.unfinished, parts.blobs, settings.retention_days, names
        )
        self._start_thread(stack, "planner", partial(run_planner, planner, self._stopping))
        self._start_thread(stack, "housekeeper", partial(keeper.run, self._stopping))
        self._start_thread(stack, "migrator", partial(migrator.run, self._stopping))
        poster = Poster(settings.fetch, settings.webhooks.timeout_s)
        stack.callback(poster.close)
        webhooks = MemoryWebhooks(parts.ledger)
        sender = WebhookSender(webhooks, parts.ledger, poster, settings.webhooks)
        self._start_thread(stack, "webhooks", partial(sender.run, self._stopping))

    def _start_worker(self, stack: ExitStack, model: str, embedder: Embedder) -> None:
        parts, settings = self.parts, self.settings.model_copy(update={"model": model})
        storage = self._make_storage(stack)
        kit = Kit.of(settings, storage.access, embedder.preprocess)
        feeders = stack.enter_context(closing(ThreadFeeders(THREADS, kit)))
        ingest = IngestParts(
            worker=NAME if embedder is self._embedder else f"{NAME}-{model}",
            ledger=parts.ledger,
            store=parts.store,
            catalogue=parts.catalogue,
            embedder=embedder,
            blobs=parts.blobs,
            settings=settings,
            threads=_threads(stack, THREADS, "io"),
            feeders=feeders,
            stopping=self._stopping,
            storage=storage,
            fetches=fetch_pool(settings.fetch),
        )
        query = QueryParts(
            embedder=embedder,
            store=parts.store,
            catalogue=parts.catalogue,
            replies=parts.inbox,
            exact=Bounds(settings.exact_timeout_s, self._stopping),
            nouns=NounBanks(embedder, model),
        )
        aside = {name: _threads(stack, 1, name) for name in ("exact", "large")}

        def answer(message: Message) -> None:
            assert isinstance(message, QueryBatch)
            if message.aside:  # so that other queries do not wait for it
                aside[message.aside].submit(answer_batch, message, query)
            else:
                answer_batch(message, query)

        claimed = pass_on(parts.publisher, model)
        background = Background()
        stack.callback(background.wait, STOP_TIMEOUT_S)

        def work(message: Message) -> None:
            assert isinstance(message, IngestNudge)
            if background.has_room and (claim := claim_next(ingest, claimed, remote=True)):
                background.start(
                    lambda waits: work_on(claim, replace(ingest, waits=waits)),
                    lambda: claimed(replace(claim, more=True)),
                )
            ingest_next(ingest, claimed)

        card = self._card(ingest.worker, model, embedder)
        parts.fleet.announce(card)
        self._start_thread(stack, "announce", partial(self._keep_announcing, card))
        self._start_thread(stack, "ingest", partial(self._take, queue_name("ingest", model), work))
        self._start_thread(stack, "query", partial(self._take, queue_name("query", model), answer))

    def _make_storage(self, stack: ExitStack) -> Storage:
        fetcher = Fetcher(self.settings.fetch)
        stack.callback(fetcher.close)
        return Storage(self.settings, self.parts.blobs, fetcher)

    def _take(self, queue: str, work: Callable[[Message], None]) -> None:
        while not self._stopping.is_set():
            message = self.parts.publisher.take(queue, POLL_S)
            try:
                if message:
                    work(message)
            except Exception:
                log.exception("a message of the queue %s failed", queue)

    def _keep_announcing(self, card: WorkerCard) -> None:
        while not self._stopping.wait(CARD_S / 5):
            self.parts.fleet.announce(card.model_copy(update={"progress_at": time.time()}))

    def _card(self, name: str, model: str, embedder: Embedder) -> WorkerCard:
        now = time.time()
        return WorkerCard(
            id=f"{socket.gethostname()}-{os.getpid()}-{name}",
            model=model,
            dim=embedder.dim,
            lanes=LANES,
            device=embedder.device,
            preprocess=embedder.preprocess,
            started_at=now,
            progress_at=now,
        )

    def _start_gateway(self, stack: ExitStack) -> None:
        app = create_app(self.settings, self.parts)
        config = uvicorn.Config(
            app, port=0, log_config=None, timeout_graceful_shutdown=1, http=Protocol
        )
        server = uvicorn.Server(config)
        stop = partial(setattr, server, "should_exit", True)
        self._start_thread(stack, "gateway", server.run, stop)
        until = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            if time.monotonic() > until:
                raise RuntimeError("the gateway did not start; the log says why")
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def _start_thread(
        self,
        stack: ExitStack,
        name: str,
        run: Callable[[], None],
        stop: Callable[[], None] | None = None,
    ) -> None:
        thread = threading.Thread(target=run, name=f"clipfleet-{name}", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop or self._stopping.set)


def _threads(stack: ExitStack, count: int, name: str) -> ThreadPoolExecutor:
    return stack.enter_context(ThreadPoolExecutor(count, f"clipfleet-{name}"))
