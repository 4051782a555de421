"""Histories of a migration: no generation ever has embeddings of another model, and at the end each
one has what clients wrote."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clipfleet.common.store import Store
from support.migration_machine import IDS, MODELS, World

names = st.lists(st.sampled_from(IDS), min_size=1, max_size=5, unique=True)
traps = st.none() | st.integers(0, 12)  # calls until a part ends; None: it goes on


class Migrating(RuleBasedStateMachine):
    """A migration with writes and deletions going on, and parts that end at every step.

    Args:
        store: a store; None: one in memory.
    """

    def __init__(self, store: Store | None = None) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.world = World(Path(self._folder.name), store)

    def teardown(self) -> None:
        try:
            self.world.settle()
            self.world.check_rows()
            self.world.check_all()
        finally:
            self.world.close()
            self._folder.cleanup()

    @rule(chosen=names)
    def index(self, chosen: list[str]) -> None:
        self.world.index(chosen)

    @rule(name=st.sampled_from(IDS), trap=traps)
    def delete(self, name: str, trap: int | None) -> None:
        if not self.world.is_being_indexed(name):  # which of the two is later would be open
            self.world.trap.set(trap)
            self.world.delete(name)

    @rule(name=st.sampled_from(IDS))
    def vanish(self, name: str) -> None:
        if not self.world.is_being_indexed(name):
            self.world.vanish(name)

    @rule(trap=traps)
    def start(self, trap: int | None) -> None:
        current = self.world.catalogue.find("photos")
        (other,) = MODELS.keys() - {current.model}
        self.world.trap.set(trap)
        self.world.migrate("start", model=other)

    @rule(step=st.sampled_from(["pause", "resume", "finish", "cancel"]), trap=traps)
    def change(self, step: str, trap: int | None) -> None:
        self.world.trap.set(trap)
        self.world.migrate(step)

    @rule(step=st.sampled_from(["swap", "rollback"]), trap=traps, force=st.booleans())
    def turn(self, step: str, trap: int | None, force: bool) -> None:
        self.world.trap.set(trap)
        self.world.migrate(step, force=force)

    @rule(trap=traps)
    def plan(self, trap: int | None) -> None:
        self.world.trap.set(trap)
        self.world.plan()

    @rule(trap=traps)
    def tend(self, trap: int | None) -> None:
        self.world.trap.set(trap)
        self.world.tend()

    @rule(model=st.sampled_from(sorted(MODELS)), trap=traps)
    def work(self, model: str, trap: int | None) -> None:
        self.world.trap.set(trap)
        self.world.work(model)

    @rule(
        model=st.sampled_from(sorted(MODELS)),
        calls=st.integers(0, 12),
        step=st.sampled_from(["delete", "work", "tend", "swap", "rollback", "pause"]),
        name=st.sampled_from(IDS),
    )
    def work_while(self, model: str, calls: int, step: str, name: str) -> None:
        """Between two calls of the worker, somebody else does something."""
        world = self.world
        (other,) = MODELS.keys() - {model}

        def meanwhile() -> None:
            if step == "delete" and not world.is_being_indexed(name):
                world.delete(name)
            elif step == "work":
                world.work(other)
            elif step == "tend":
                world.tend()
            elif step in ("swap", "rollback"):
                world.migrate(step, force=True)
            elif step == "pause":
                world.migrate(step)

        world.trap.set(calls, meanwhile)
        world.work(model)

    @rule()
    def settle(self) -> None:
        self.world.settle()
        self.world.check_all()

    @invariant()
    def nothing_is_mixed(self) -> None:
        self.world.check_rows()
