"""The source of a job that copies images from one generation of a collection to the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clipfleet.common.collection import Collection
from clipfleet.common.ledger import Item, NewJob, Stored
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.ledger.migrations import SOURCE_TYPE
from clipfleet.common.ledger.unreadable import Unreadable
from clipfleet.common.store import Record, Store
from clipfleet.common.store.generations import missing_images
from clipfleet.workers.sources import Listed, SourceError
from clipfleet.workers.sources.notes import Notes
from clipfleet.workers.sources.scratch import scratch
from clipfleet.workers.sources.stored import NotFoundAgain, Whereabouts
from clipfleet.workers.storage.locations import Storage


@dataclass(frozen=True)
class Generations:
    """What is needed to read the generations of a collection.

    Attributes:
        catalogue: knows the generations.
        store: has their images.
        unreadable: the images that cannot be copied.
    """

    catalogue: Catalogue
    store: Store
    unreadable: Unreadable


def copy_source(unreadable: str, source: Collection, since: int) -> dict[str, Any]:
    """The source of a job that copies images, for `CopySource`.

    Args:
        unreadable: the list of the images that cannot be copied.
        source: the generation that has the images.
        since: images that were stored earlier are left out, unix time in milliseconds.
    """
    return {
        "type": SOURCE_TYPE,
        "unreadable": unreadable,
        "from": source.generation,
        "model": source.model,
        "since": since,
    }


class CopySource:
    """The images that a generation lacks. The cursor is the primary key.

    Args:
        new: the job.
        generations: has both generations.
        storage: finds the images, as far as the job may read them.
    """

    def __init__(self, new: NewJob, generations: Generations, storage: Storage) -> None:
        self._new, self._parts, self._storage = new, generations, storage
        self.notes = Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        with scratch() as database:
            whereabouts = Whereabouts(self._storage, self._new.id, database)
            for page in self._pages(after):
                for record in page:
                    yield Listed(_item(record, whereabouts), record.pk)

    def is_empty(self) -> bool:
        """Whether there is nothing to copy."""
        return not any(page for page in self._pages(""))

    def _pages(self, after: str) -> Iterator[list[Record]]:
        """The images to copy, without those that are known to be unreadable."""
        source, target = self._generation(self._new.source["from"]), self._target()
        since = int(self._new.source["since"])
        migration = self._parts.catalogue.migration(self._new.collection)
        is_older = migration is not None and migration.swapped_at is not None
        pages = missing_images(
            self._parts.store, source, target, since=since, after=after, is_older=is_older
        )
        name = str(self._new.source["unreadable"])
        for page in pages:
            lost = self._parts.unreadable.known(name, [row.pk for row in page])
            yield [row for row in page if lost.get(row.pk) != row.indexed_at]

    def _target(self) -> Collection:
        return self._generation(self._new.generation)

    def _generation(self, generation: str) -> Collection:
        collection = self._parts.catalogue.generation(self._new.collection, generation)
        if collection is None:
            raise SourceError("the migration has ended")
        return collection

    def count(self) -> int:
        if int(self._new.source["since"]):
            return 0
        source, target = self._generation(self._new.source["from"]), self._target()
        store = self._parts.store
        return max(0, store.count(source) - store.count(target))

    def nothing_found(self) -> str:
        return ""


def _item(record: Record, whereabouts: Whereabouts) -> Item:
    read, problem = "", None
    try:
        read = whereabouts.read_of(record)
    except NotFoundAgain as error:
        problem = str(error)
    return Item(
        id=record.id,
        uri=record.uri,
        read=read,
        label=record.label,
        metadata=record.metadata,
        problem=problem,
        stored=Stored(
            namespace=record.namespace,
            job_id=record.job_id,
            indexed_at=record.indexed_at,
            content_hash=record.content_hash,
        ),
    )
