"""The catalogue in Redis and the collections in the store, made to agree again.

They are two systems, and a gateway can end between a step in one and a step in the other. Redis can
forget its last second. So each side says enough to mend the other: docs/decisions/0023.
"""

import logging
import time

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.imaging.thumbnails import thumbnails_of
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.store import CollectionGone, Store
from clipfleet.common.versions import OtherVersion, warn_once

log = logging.getLogger(__name__)

YOUNG_S = 300.0  # a request that makes a collection may still be on its way to its name


class Reconciler:
    """One round does what is to be done now. Several gateways may do so at once."""

    def __init__(self, catalogue: Catalogue, store: Store, blobs: Blobs) -> None:
        self._catalogue, self._store, self._blobs = catalogue, store, blobs
        self._missing: set[str] = set()  # generations that were missing in the round before

    def round(self) -> None:
        """Raises Unavailable when a part is away; the next round goes on."""
        for collection in self._catalogue.to_drop():
            self.drop(collection)
        self._free_names_without_a_collection()
        self._name_collections_without_a_name()

    def drop(self, collection: Collection) -> None:
        """All that lies anywhere of a generation that has no name any more."""
        self._store.drop(collection)
        self._blobs.delete_below(thumbnails_of(collection))
        self._catalogue.record_dropped(collection)

    def _free_names_without_a_collection(self) -> None:
        """Redis forgot that they were deleted. Twice: the store may be starting."""
        missing = self._store.missing(self._catalogue.all())
        for collection in missing:
            if collection.generation in self._missing and self._catalogue.remove(collection):
                log.warning(
                    "collection %r is not in the store any more: its name is free", collection.name
                )
        self._missing = {collection.generation for collection in missing}

    def _name_collections_without_a_name(self) -> None:
        """Redis forgot that they were made, or their gateway ended before it gave the name."""
        for collection in self._store.others(self._known()):
            known = {one.generation for one in self._known()}
            if collection.generation not in known and _age_s(collection) > YOUNG_S:
                try:
                    self._give_a_name(collection)
                except (CollectionGone, OtherVersion):
                    continue

    def _known(self) -> list[Collection]:
        return [*self._catalogue.all(), *self._catalogue.to_drop()]

    def _give_a_name(self, collection: Collection) -> None:
        count = self._store.count(collection)  # CollectionGone: it was deleted meanwhile
        holder = self._catalogue.find(collection.name)
        if holder is None:
            self._catalogue.add(collection)
            log.warning("collection %r was found in the store: it has its name", collection.name)
        elif holder.generation == collection.generation:
            return
        elif count == 0:
            self._store.drop(collection)
        else:
            warn_once(
                f"the store holds {count} images of another collection {collection.name!r}, of "
                f"generation {collection.generation}; delete or rename the one of today to see it"
            )


def _age_s(collection: Collection) -> float:
    return time.time() - collection.created_at
