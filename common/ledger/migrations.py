"""The record of a migration: a second generation of a collection, with another model.

A name stands for one of the two generations at any time. The catalogue keeps the record beside the
names, and changes both in one step; see docs/decisions/0038.
"""

import secrets
from typing import Literal

from pydantic import BaseModel, ConfigDict

from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.http.migrations import MigrationState
from clipfleet.common.http.source_grants import SourceGrant

ENDED: frozenset[MigrationState] = frozenset({"finished", "cancelled", "failed"})
# A pass begins this long before the end of the last one: a write takes some time from its
# `indexed_at` to its acknowledgement, and the clocks of workers may differ.
MARGIN_S = 120.0
SOURCE_TYPE = "migration"  # of the jobs that copy images from one generation to the other


class Pass(BaseModel):
    """The copying in one direction, which repeats until the migration ends.

    Attributes:
        job: the job that copies now; "": none.
        began: when the last pass began, unix time in milliseconds.
        done_to: all images that were stored before this time are copied, or cannot be read; unix
            time in milliseconds. 0: no pass over all images has ended yet.
    """

    model_config = ConfigDict(frozen=True)

    job: str = ""
    began: int = 0
    done_to: int = 0

    @property
    def since(self) -> int:
        """Where the next pass begins, unix time in milliseconds; 0: with all images."""
        return max(0, self.done_to - int(MARGIN_S * 1000))


class Example(BaseModel):
    """What the two generations answer to one image.

    Attributes:
        id: the image.
        namespace: its namespace.
        old: ids of the nearest images in the old generation, the nearest first.
        new: the same in the new generation.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    namespace: str
    old: tuple[str, ...]
    new: tuple[str, ...]


class Comparison(BaseModel):
    """How the answers of the two generations differ, on stored images as queries.

    Attributes:
        queries: the number of queries.
        overlap: the share of the ten nearest images that both generations find, 0 to 1.
        labelled: the number of queries with a label.
        precision_old: the share of the ten nearest images in the old generation that have the
            label of the query, 0 to 1; None without labels.
        precision_new: the same in the new generation.
        at: when it was measured, unix seconds.
        examples: some of the queries with their answers.
    """

    model_config = ConfigDict(frozen=True)

    queries: int
    overlap: float
    labelled: int = 0
    precision_old: float | None = None
    precision_new: float | None = None
    at: float
    examples: tuple[Example, ...] = ()


class Migration(BaseModel):
    """A migration.

    Attributes:
        v: the version of this record.
        id: 12 hex digits, different for each migration.
        revision: the number of changes of this record.
        name: the name of the collection.
        old: the generation that had the name at the beginning.
        new: the generation with the other model.
        state: its state.
        created_at: when it began, unix seconds, as are all times here.
        changed_at: when its state changed.
        complete_at: when a pass over all images had ended for the first time; None: not yet.
        swapped_at: when the name was given to the new generation for the last time; None: never.
        key: the name of the API key that started it; "": none.
        grant: what its jobs may read; None: as much as the service.
        forward: copies to the new generation.
        backward: copies to the old generation, once the name has stood for the new one.
        comparison: the last comparison; None: not yet.
        error: why it is paused or failed; "": otherwise.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    revision: int = 0
    name: str
    old: Collection
    new: Collection
    state: MigrationState = "building"
    created_at: float
    changed_at: float
    complete_at: float | None = None
    swapped_at: float | None = None
    key: str = ""
    grant: SourceGrant | None = None
    forward: Pass = Pass()
    backward: Pass = Pass()
    comparison: Comparison | None = None
    error: str = ""

    @classmethod
    def begin(
        cls, old: Collection, new: Collection, now: float, key: str, grant: SourceGrant | None
    ) -> "Migration":
        """A migration that begins now.

        Args:
            old: the generation that has the name.
            new: the generation to build, with the same name.
            now: unix seconds.
            key: the name of the API key that starts it; "": none.
            grant: what its jobs may read; None: as much as the service.
        """
        return cls(
            id=secrets.token_hex(6),
            name=old.name,
            old=old,
            new=new,
            created_at=now,
            changed_at=now,
            key=key,
            grant=grant,
        )

    @property
    def is_over(self) -> bool:
        """Whether only one of the generations is left."""
        return self.state in ENDED

    @property
    def current(self) -> Collection:
        """The generation that has the name."""
        return self.new if self.state in ("swapped", "finished") else self.old

    @property
    def other(self) -> Collection:
        """The generation that does not have the name."""
        return self.old if self.current is self.new else self.new

    @property
    def dropped(self) -> Collection | None:
        """The generation whose data is deleted, once the migration is over."""
        return self.other if self.is_over else None

    @property
    def jobs(self) -> list[str]:
        """The jobs that copy now."""
        return [copying.job for copying in (self.forward, self.backward) if copying.job]

    def generation(self, generation: str) -> Collection | None:
        """The generation with this number, while the migration is not over."""
        if self.is_over:
            return None
        generations = (self.old, self.new)
        return next((known for known in generations if known.generation == generation), None)

    def concerns(self, *generations: str) -> bool:
        """Whether these are its generations, even if it is over."""
        return {*generations} <= {self.old.generation, self.new.generation}

    def sibling(self, generation: str) -> Collection | None:
        """The other one of the two generations; None for a generation of neither."""
        match self.generation(generation):
            case None:
                return None
            case known:
                return self.new if known is self.old else self.old

    def changed(self, state: MigrationState, now: float, error: str = "") -> "Migration":
        """The migration in another state."""
        return self.model_copy(update={"state": state, "changed_at": now, "error": error})

    def idle(self) -> "Migration":
        """The migration without jobs that copy."""
        no_job = {"job": ""}
        forward = self.forward.model_copy(update=no_job)
        backward = self.backward.model_copy(update=no_job)
        return self.model_copy(update={"forward": forward, "backward": backward})

    def paused(self, now: float) -> "Migration":
        """Stop copying until it is resumed.

        Raises:
            Conflict: it is swapped or over.
        """
        if self.state == "paused":
            return self
        self._require(("building", "ready"), "paused")
        return self.idle().changed("paused", now)

    def resumed(self, now: float) -> "Migration":
        """Continue to copy, with a pass over all images: unreadable ones are tried again.

        Raises:
            Conflict: it is over.
        """
        if self.state in ("building", "ready", "swapped"):
            return self
        self._require(("paused",), "resumed")
        again = self.model_copy(update={"forward": Pass()})
        return again.changed("ready" if self.complete_at else "building", now)

    def swapped(self, now: float) -> "Migration":
        """Give the name to the new generation.

        Raises:
            Conflict: it is over.
        """
        if self.state == "swapped":
            return self
        self._require(("building", "paused", "ready"), "swapped")
        back = self.backward
        if not back.done_to:  # what clients write to the new generation from now on
            back = back.model_copy(update={"done_to": int(1_000 * now)})
        changes = {"swapped_at": now, "backward": back}
        return self.changed("swapped", now).model_copy(update=changes)

    def rolled_back(self, now: float) -> "Migration":
        """Give the name to the old generation again.

        Raises:
            Conflict: it is not swapped.
        """
        if self.state in ("building", "paused", "ready") and self.swapped_at:
            return self
        self._require(("swapped",), "rolled back")
        return self.changed("ready" if self.complete_at else "building", now)

    def finished(self, now: float) -> "Migration":
        """Give up the old generation.

        Raises:
            Conflict: it is not swapped.
        """
        if self.state == "finished":
            return self
        self._require(("swapped",), "finished")
        return self.idle().changed("finished", now)

    def cancelled(self, now: float) -> "Migration":
        """Give up the new generation.

        Raises:
            Conflict: it is swapped or finished.
        """
        if self.state in ("cancelled", "failed"):
            return self
        if self.state == "swapped":
            raise Conflict(
                f"the migration of {self.name!r} is swapped: roll it back before you cancel it, or "
                "finish it",
                state=self.state,
            )
        self._require(("building", "paused", "ready"), "cancelled")
        return self.idle().changed("cancelled", now)

    def _require(self, states: tuple[MigrationState, ...], what: str) -> None:
        if self.state not in states:
            detail = f"the migration of {self.name!r} is {self.state}; it cannot be {what}"
            raise Conflict(detail, state=self.state)


def no_migration(name: str) -> NotFound:
    """The error for a collection that was never migrated."""
    return NotFound(
        f"there is no migration of the collection {name[:80]!r}; start one with "
        "POST /v1/collections/NAME/migrations or `clipfleet collections migrate NAME --model M`"
    )


def is_migration(source: dict[str, object]) -> bool:
    """Whether the source of a job is another generation."""
    return source.get("type") == SOURCE_TYPE
