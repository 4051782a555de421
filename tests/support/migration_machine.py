"""A collection of images that is migrated, written and searched, whose parts end at any step.

Gateway, planner, migrator and workers are the real ones, on parts in memory, and take turns on one
thread. A `Trap` ends one of them between two calls of the store, the catalogue or the ledger, as
kill -9 would.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from clipfleet.api.app import create_app
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.fetch import Fetcher
from clipfleet.common.identity import primary_key
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.catalogue import HOLD_S, MemoryCatalogue, both_generations
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.migrations import is_migration
from clipfleet.common.queue.fleet import WorkerCard
from clipfleet.common.settings import Settings
from clipfleet.common.store import Record, Store
from clipfleet.common.store.memory import MemoryStore
from clipfleet.testing import memory_parts
from clipfleet.workers.ingest.chunk import IngestParts
from clipfleet.workers.ingest.claims import ingest_next
from clipfleet.workers.ingest.feeders import ThreadFeeders
from clipfleet.workers.ingest.prepare import Kit
from clipfleet.workers.planner.generation_source import Generations
from clipfleet.workers.planner.migrations import Migrator
from clipfleet.workers.planner.planner import Planner
from clipfleet.workers.planner.readers import Readers
from clipfleet.workers.storage.locations import Storage

MODELS = {"hash:8": 8, "hash:16": 16}
IDS = tuple(f"{space}/{n}" for space in "ab" for n in range(4))  # "namespace/number"
NAME = "photos"
STEPS = 400  # of all parts until nothing is left to do
EDGE = 16


class Killed(BaseException):
    """A part ended."""


def kill() -> None:
    raise Killed


class Trap:
    """Ends the part that makes the next call but `calls`, or does something else then."""

    def __init__(self) -> None:
        self._calls: int | None = None
        self._do: Callable[[], object] = kill

    def set(self, calls: int | None, do: Callable[[], object] = kill) -> None:
        self._calls, self._do = calls, do

    def step(self) -> None:
        if self._calls is None:
            return
        self._calls -= 1
        if self._calls < 0:
            self._calls = None
            self._do()


class Trapped:
    """A part whose calls of these names meet a trap, before and after.

    Args:
        part: the part.
        names: the names of its methods.
        trap: the trap.
    """

    def __init__(self, part: Any, names: tuple[str, ...], trap: Trap) -> None:
        self._part, self._names, self._trap = part, names, trap

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._part, name)
        if name not in self._names:
            return method

        def call(*args: Any, **options: Any) -> Any:
            self._trap.step()
            result = method(*args, **options)
            self._trap.step()
            return result

        return call


class Offset:
    """The time, and what a test adds to it."""

    seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.seconds


def key_of(name: str) -> str:
    space, _, number = name.partition("/")
    return primary_key(space, number)


class World:
    """The parts, and what clients wrote: `expected` has the label of each image by its name.

    Args:
        folder: an empty folder.
        store: a store; None: one in memory.
    """

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self.stack = ExitStack()
        self.trap, self.clock, self.timer = Trap(), Offset(), Offset()
        self.folder = folder / "photos"
        self.folder.mkdir()
        self.settings = Settings(
            model="hash:8",
            blobs=f"memory://migration-{folder.name}",
            call_timeout_s=0.01,
            source_roots=(self.folder,),
            thumbnail_edge=0,
        )
        of_store = ("upsert", "update", "delete", "create", "fingerprints")
        of_catalogue = ("change_migration", "record_deletion", "record_write", "hold")
        of_ledger = ("create", "mark", "plan", "cancel")
        store = Trapped(store or MemoryStore(), of_store, self.trap)
        catalogue = Trapped(MemoryCatalogue(self.clock), of_catalogue, self.trap)
        ledger = Trapped(MemoryLedger(self.clock), of_ledger, self.trap)
        self.parts = memory_parts(self.settings, store=store, catalogue=catalogue, ledger=ledger)
        self.store, self.catalogue, self.ledger = store, catalogue, ledger
        self.app = create_app(self.settings, self.parts)
        self.app.state.gateway = Gateway(self.settings, self.parts)
        self.embedders = {model: HashEmbedder(dim) for model, dim in MODELS.items()}
        self.threads = self.stack.enter_context(ThreadPoolExecutor(2))
        fetcher = self.stack.enter_context(closing(Fetcher(self.settings.fetch)))
        self.storage = Storage(self.settings, self.parts.blobs, fetcher)
        self.expected: dict[str, str] = {}
        self.gone: set[str] = set()  # images whose file is not there
        self.version = 0
        self.planners = 0
        for model in MODELS:
            self.announce(model)
        self.restart_planner()
        collection = Collection.new(NAME, metric="cosine", model="hash:8", dim=8, fields={})
        store.create(catalogue.add(collection))

    def close(self) -> None:
        self.trap.set(None)
        for generation in [*self.generations(), *self.catalogue.to_drop()]:
            self.store.drop(generation)
        self.stack.close()

    def announce(self, model: str) -> None:
        now = time.time()
        embedder = self.embedders[model]
        self.parts.fleet.announce(
            WorkerCard(
                id=f"w-{model}", model=model, dim=embedder.dim, lanes=("ingest", "query"),
                device="cpu", preprocess=embedder.preprocess, started_at=now,
                progress_at=now + 3_600,
            )
        )  # fmt: skip

    def restart_planner(self) -> None:
        self.planners += 1
        generations = Generations(self.catalogue, self.store, self.parts.unreadable)
        self.planner = Planner(
            f"planner-{self.planners}", self.ledger, self.parts.fleet, self.parts.publisher,
            self.settings, self.storage, Readers(patience_s=30, listing_s=30),
            generations=generations,
        )  # fmt: skip
        self.migrator = Migrator(
            self.ledger, generations, self.storage, self.parts.blobs, timer=self.timer
        )

    def path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.png"

    def image(self, name: str) -> Image.Image:
        shade = 10 * IDS.index(name)
        return Image.new("RGB", (EDGE, EDGE), (shade, 255 - shade, shade))

    # what users do
    def index(self, names: list[str]) -> None:
        """Begin a job that gives each image a new label."""
        current = self.catalogue.find(NAME)
        assert current is not None
        self.version += 1
        for space in "ab":
            chosen = [name for name in names if name.startswith(space)]
            if not chosen:
                continue
            for name in chosen:
                self.image(name).save(self.path(name))
                self.gone.discard(name)
            items = [
                {
                    "id": name.partition("/")[2], "uri": str(self.path(name)),
                    "read": f"file:{self.path(name)}", "label": f"v{self.version}",
                    "metadata": {"version": self.version},
                }
                for name in chosen
            ]  # fmt: skip
            self.ledger.create(
                NewJob(
                    id=f"job-{self.version}-{space}", collection=NAME,
                    generation=current.generation, model=current.model, namespace=space,
                    source={"type": "upload", "items": items}, on_existing="replace",
                )
            )  # fmt: skip

    def vanish(self, name: str) -> None:
        """Delete the file of an image; it stays in the collection."""
        self.path(name).unlink(missing_ok=True)
        self.gone.add(name)

    def is_being_indexed(self, name: str) -> bool:
        """Whether a job that has not ended may write the image."""
        for job_id in self.ledger.active():
            new = self.ledger.whole(job_id)
            for item in new.source.get("items", []):
                if f"{new.namespace}/{item['id']}" == name:
                    return True
        return False

    def delete(self, name: str) -> None:
        space, _, number = name.partition("/")
        answer = self.ask("DELETE", "/images", params={"id": number, "namespace": space})
        if answer is None:  # the gateway ended: the user tries again
            answer = self.ask("DELETE", "/images", params={"id": number, "namespace": space})
            assert answer is not None
            assert answer.status_code in (200, 404), answer.text
        self.expected.pop(name, None)

    def ask(
        self, method: str, path: str, body: Any = None, **options: Any
    ) -> httpx.Response | None:
        """Send a request below the collection; None: the gateway ended."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1:8000"
            ) as http:
                return await http.request(
                    method, f"/v1/collections/{NAME}{path}", json=body, **options
                )

        self.app.state.gateway.forget(NAME)
        try:
            return asyncio.run(send())
        except Killed:
            self.clock.seconds += 2 * HOLD_S  # what it had in hand is free
            return None
        finally:
            self.trap.set(None)

    def migrate(self, step: str, **body: Any) -> int:
        """Send a request about the migration; its status, or 0: the gateway ended."""
        method = "DELETE" if step == "cancel" else "POST"
        path = "" if step in ("start", "cancel") else f"/{step}"
        answer = self.ask(method, f"/migrations{path}", body or None)
        if answer is None:
            return 0
        assert answer.status_code in (200, 201, 404, 409), answer.text
        return answer.status_code

    # what parts do
    def plan(self) -> None:
        self._run(self.planner.tick)

    def tend(self) -> None:
        self.timer.seconds += 60
        self._run(self.migrator.tick)

    def work(self, model: str) -> None:
        """Work on the next chunk of a model."""
        settings = self.settings.model_copy(update={"model": model})
        embedder = self.embedders[model]
        with closing(
            ThreadFeeders(2, Kit.of(settings, self.storage.access, embedder.preprocess))
        ) as feeders:
            parts = IngestParts(
                f"w-{model}", self.ledger, self.store, self.catalogue, embedder,
                self.parts.blobs, settings, self.threads, feeders, _never(), self.storage,
            )  # fmt: skip
            before = self._written()
            self._run(lambda: ingest_next(parts))
            self._note_writes(before)

    def _run(self, do: Callable[[], object]) -> None:
        try:
            do()
        except Killed:
            self.restart_planner()
            self.clock.seconds += 2 * max(self.settings.lease_s, self.settings.plan_lease_s)
        finally:
            self.trap.set(None)

    def _written(self) -> dict[str, set[tuple[str, str, int]]]:
        """What each generation has: key, label, and time."""
        return {
            generation.generation: {
                (row.pk, row.label, row.indexed_at) for row in self.rows(generation)
            }
            for generation in self.generations()
        }

    def _note_writes(self, before: dict[str, set[tuple[str, str, int]]]) -> None:
        """Add to `expected` what a job of a user has stored. A copy has no time of its own."""
        known = set.union(*before.values()) if before else set()
        names = {key_of(name): name for name in IDS}
        for rows in self._written().values():
            for pk, label, _ in sorted(rows - known, key=lambda row: row[2]):
                self.expected[names[pk]] = label

    def generations(self) -> list[Collection]:
        current = self.catalogue.find(NAME)
        return both_generations(self.catalogue, current) if current else []

    def rows(self, generation: Collection) -> list[Record]:
        rows: list[Record] = self.store.scan(generation, limit=1_000, include_values=True)
        return rows

    def settle(self) -> None:
        """Let all parts run until nothing is left to do."""
        quiet = 0
        if (paused := self.catalogue.migration(NAME)) and paused.state == "paused":
            assert self.migrate("resume") == 200
        for _ in range(STEPS):
            self.plan()
            self.tend()
            for model in MODELS:
                self.work(model)
            migration = self.catalogue.migration(NAME)
            busy = self.ledger.active() or (migration and migration.jobs)
            quiet = 0 if busy else quiet + 1
            if quiet > 3:
                return
        raise AssertionError(f"it does not end: {self.catalogue.migration(NAME)}")

    # what must hold
    def check_rows(self) -> None:
        """Each generation has embeddings of its own model alone."""
        names = {key_of(name): name for name in IDS}
        for generation in self.generations():
            embedder = self.embedders[generation.model]
            for row in self.rows(generation):
                pixels = embedder.preprocess.apply(np.asarray(self.image(names[row.pk])))
                (embedding,) = embedder.embed_images(pixels[None])
                assert np.array_equal(row.embedding, embedding), (generation.model, names[row.pk])

    def check_all(self) -> None:
        """What answers has what clients wrote, as far as it could be read; so has the other one."""
        names = {key_of(name): name for name in IDS}
        current = self.catalogue.find(NAME)
        assert current is not None
        by_generation = {}
        for generation in self.generations():
            labels = {names[row.pk]: row.label for row in self.rows(generation)}
            by_generation[generation.generation] = labels
            missing = self.expected.keys() - labels.keys()
            assert missing <= self.gone, (generation.model, missing)
            wrong = {name for name in labels if self.expected.get(name) != labels[name]}
            # What cannot be read any more keeps the label of its last copy.
            assert wrong <= self.gone & self.expected.keys(), (generation.model, wrong)
        migration = self.catalogue.migration(NAME)
        if migration and not migration.is_over:
            assert len(by_generation) == 2
        else:
            assert len(by_generation) == 1

    def copies(self) -> list[str]:
        """The jobs of migrations that have not ended."""
        jobs = []
        for job_id in self.ledger.active():
            with suppress(Exception):
                if is_migration(self.ledger.job(job_id).new.source):
                    jobs.append(job_id)
        return jobs


def _never() -> Any:
    import threading

    return threading.Event()
