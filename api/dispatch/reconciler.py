"""Makes the catalogue in Redis and the collections in the store agree again.

A gateway can end between a change of one and the change of the other, and Redis can lose the writes
of its last second. Each side keeps enough to repair the other; see docs/decisions/0023.
"""

import logging
import time
from collections.abc import Set

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict
from clipfleet.common.http.migrations import MigrationState
from clipfleet.common.imaging.thumbnails import thumbnails_of
from clipfleet.common.ledger.catalogue import Catalogue, hidden_generations
from clipfleet.common.ledger.stored_images import results_of
from clipfleet.common.snapshots import snapshots_of
from clipfleet.common.store import CollectionGone, Store
from clipfleet.common.versions import OtherVersion, warn_once

log = logging.getLogger(__name__)

GRACE_PERIOD_S = 300.0  # a request that creates a collection may be about to add its name


class Reconciler:
    """Compares the catalogue with the store. Several gateways may do so at the same time.

    Args:
        catalogue: the collections by name.
        store: the collections with their embeddings.
        blobs: the thumbnails, and the snapshots of sources.
    """

    def __init__(self, catalogue: Catalogue, store: Store, blobs: Blobs) -> None:
        self._catalogue, self._store, self._blobs = catalogue, store, blobs
        self._missing: set[str] = set()  # generations that the store did not have in the last round

    def round(self) -> None:
        """Compare both once and repair the differences.

        Raises:
            Unavailable: a part is unavailable; the next round continues.
        """
        for collection in self._catalogue.to_drop():
            self.drop(collection)
        self._remove_names_without_collection()
        self._add_missing_names()

    def drop(self, collection: Collection) -> None:
        """Delete all data of a generation whose name was removed from the catalogue.

        Raises:
            Unavailable: a part is unavailable; `round` tries again.
        """
        self._store.drop(collection)
        self._blobs.delete_below(thumbnails_of(collection))
        self._blobs.delete_below(results_of(collection))
        remaining = [*self._catalogue.all(), *hidden_generations(self._catalogue)]
        if collection.snapshots not in {known.snapshots for known in remaining}:
            self._blobs.delete_below(snapshots_of(collection.snapshots))
        self._catalogue.record_dropped(collection)

    def _remove_names_without_collection(self) -> None:
        """Remove names whose deletion Redis has lost.

        A collection must be missing in two rounds, because the store may be starting.
        """
        hidden = self._store.missing(hidden_generations(self._catalogue))
        missing = self._store.missing(self._catalogue.all())
        lost = {collection.generation for collection in (*missing, *hidden)}
        for collection in missing:
            if collection.generation not in self._missing:
                continue
            if self._end_migration(collection, lost):
                continue
            if self._catalogue.remove(collection):
                log.warning(
                    "collection %r is no longer in the store; its name is free again",
                    collection.name,
                )
        for collection in hidden:
            if collection.generation in self._missing:
                self._end_migration(collection, lost)
        self._missing = lost

    def _end_migration(self, missing: Collection, lost: Set[str]) -> bool:
        """End a migration of which the store has only the other generation, which gets the name.

        The store may be newer than the catalogue: a backup of Redis does not know of a swap.

        Args:
            missing: the generation that is not in the store.
            lost: all generations that are not.

        Returns:
            Whether the migration is over.
        """
        migration = self._catalogue.migration(missing.name)
        sibling = migration.sibling(missing.generation) if migration else None
        if migration is None or sibling is None or sibling.generation in lost:
            return False
        error = f"the store has lost the images of the model {missing.model!r}"
        state: MigrationState = "finished" if sibling == migration.new else "failed"
        over = migration.idle().changed(state, time.time(), error)
        if self._catalogue.change_migration(migration, over):
            log.warning("the migration of %r is over: %s", missing.name, error)
        return True

    def _add_missing_names(self) -> None:
        """Add names that Redis has lost, or that a gateway could not add before it ended."""
        for collection in self._store.others(self._catalogued()):
            generations = {catalogued.generation for catalogued in self._catalogued()}
            if collection.generation not in generations and _age_s(collection) > GRACE_PERIOD_S:
                try:
                    self._add_name(collection)
                except (CollectionGone, OtherVersion):
                    continue
                except Conflict as error:  # an alias has its name
                    warn_once(f"a collection in the store has no name: {error.detail}")

    def _catalogued(self) -> list[Collection]:
        hidden = hidden_generations(self._catalogue)
        return [*self._catalogue.all(), *hidden, *self._catalogue.to_drop()]

    def _add_name(self, collection: Collection) -> None:
        count = self._store.count(collection)  # CollectionGone: it was deleted meanwhile
        holder = self._catalogue.find(collection.name)
        if holder is None:
            self._catalogue.add(collection)
            log.warning(
                "collection %r was found in the store; its name is restored", collection.name
            )
        elif holder.generation == collection.generation:
            return
        elif count == 0:
            self._store.drop(collection)
        else:
            warn_once(
                f"the store holds {count} images of another collection {collection.name!r} "
                f"(generation {collection.generation}); to use it, delete the present collection "
                "of that name"
            )


def _age_s(collection: Collection) -> float:
    return time.time() - collection.created_at
