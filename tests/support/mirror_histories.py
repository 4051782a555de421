"""Mirrors through every history: at its end each collection is what its folders are."""

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from clipfleet.common.errors import Conflict
from clipfleet.common.http.mirror import source_identity
from clipfleet.common.store import Store
from support.mirror_harness import NAMESPACE, World

NAMES = st.sampled_from([f"{n}.png" for n in range(6)])
FOLDERS = st.sampled_from(["a", "a/b", "c"])  # the first one has the second one
COLLECTIONS = st.sampled_from(["x", "y"])
MISSING = st.sampled_from(["delete", "delete", "keep", "report"])


class Histories(RuleBasedStateMachine):
    """Files come, change, vanish and come back. Jobs of overlapping folders, in two collections,
    are mirrors or not, wait, are cancelled, and end with their planner or their worker.

    Args:
        store: a store; None: one in memory.
    """

    def __init__(self, store: Store | None = None) -> None:
        super().__init__()
        self._running = ExitStack()
        folder = self._running.enter_context(TemporaryDirectory(prefix="clipfleet-mirrors-"))
        self.world = World(Path(folder), self._running, store)
        self.content = 0
        self.used: set[tuple[str, str]] = set()
        self.jobs: list[str] = []
        for name in ("a", "a/b", "c"):
            self.write(name, "stays.png")  # an empty folder would delete nothing

    def teardown(self) -> None:
        self.world.countdown.ends_at = 0
        self.world.finish()
        used = sorted(self.used)
        for _ in range(2):  # the first one may leave images to a source that comes later
            for collection, folder in used:
                job = self.world.mirror(folder, collection, max_delete=1.0)
                assert job.state == "succeeded", job
        for collection in ("x", "y"):
            folders = [folder for name, folder in used if name == collection]
            assert self.world.index(collection) == self.world.files(folders)
        for collection, folder in used:
            job = self.world.mirror(folder, collection, max_delete=0)
            assert (job.state, job.done) == ("succeeded", 0), "nothing is left to do"
        self._running.close()

    def write(self, folder: str, name: str) -> None:
        self.content += 1
        self.world.write(f"{folder}/{name}", self.content)

    @rule(folder=FOLDERS, name=NAMES)
    def a_file_comes_or_changes(self, folder: str, name: str) -> None:
        self.write(folder, name)

    @rule(folder=FOLDERS, name=NAMES)
    def a_file_vanishes(self, folder: str, name: str) -> None:
        (self.world.photos / folder / name).unlink(missing_ok=True)

    @rule(folder=FOLDERS, old=NAMES, new=NAMES)
    def a_file_is_moved(self, folder: str, old: str, new: str) -> None:
        path = self.world.photos / folder / old
        if path.exists():
            os.replace(path, path.with_name(new))

    @rule(collection=COLLECTIONS, folder=FOLDERS, missing=MISSING, dry=st.booleans())
    def a_mirror_starts(self, collection: str, folder: str, missing: str, dry: bool) -> None:
        mirror = {"max_delete": 1.0, "missing": missing, "dry_run": dry}
        with suppress(Conflict):  # another mirror of the folder runs
            self.start(collection, folder, mirror=mirror)

    @rule(collection=COLLECTIONS, folder=FOLDERS)
    def a_plain_job_starts(self, collection: str, folder: str) -> None:
        self.start(collection, folder)

    @rule(collection=COLLECTIONS, folder=FOLDERS, name=NAMES)
    def an_event_starts_a_job(self, collection: str, folder: str, name: str) -> None:
        origin = source_identity(NAMESPACE, self.world.folder(folder))
        self.start(collection, f"{folder}/{name}", used=folder, origin=origin)

    def start(self, collection: str, path: str, used: str = "", **options: object) -> None:
        job_id = self.world.start(self.world.folder(path), collection, **options)
        self.jobs.append(job_id)
        self.used.add((collection, used or path))

    @rule(calls=st.integers(1, 60), rounds=st.integers(1, 3))
    def the_planner_ends(self, calls: int, rounds: int) -> None:
        """At some call of the next rounds, if there are so many."""
        countdown = self.world.countdown
        countdown.calls, countdown.ends_at = 0, calls
        for _ in range(rounds):
            self.world.step()
        countdown.ends_at = 0

    @rule(rounds=st.integers(1, 3))
    def planners_work(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.planner.tick()

    @rule()
    def a_worker_ends(self) -> None:
        self.world.planner.tick()
        self.world.lose_chunk()

    @rule()
    def everything_is_done(self) -> None:
        self.world.finish()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def a_job_is_cancelled(self, data: st.DataObject) -> None:
        self.world.ledger.cancel(data.draw(st.sampled_from(self.jobs)))

    @rule(collection=COLLECTIONS, folder=FOLDERS, name=NAMES)
    def an_image_is_deleted_by_hand(self, collection: str, folder: str, name: str) -> None:
        self.world.delete(f"{folder}/{name}", collection)
