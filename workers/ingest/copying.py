"""What a chunk that copies images from one generation to the other does differently."""

from collections.abc import Iterable, Mapping

from clipfleet.common.collection import Collection
from clipfleet.common.ledger import Item, Job
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.store import CollectionGone, Store
from clipfleet.common.store.generations import lacks


class Copying:
    """Says which images of a chunk still have to be copied.

    A copy is made only while the other generation has the image as it was when the planner read it.
    What was deleted or changed since is left to the deletion, or to the next pass.

    Args:
        job: the job that copies.
        collection: the generation that images are copied to.
        store: has both generations.
        catalogue: knows them.

    Every call raises Unavailable while the store or the catalogue is away.
    """

    def __init__(
        self,
        job: Job,
        collection: Collection,
        store: Store,
        catalogue: Catalogue,
    ) -> None:
        self._name, self._target = job.new.collection, collection
        self._from = str(job.new.source["from"])
        self._store, self._catalogue = store, catalogue

    def due(self, times: Mapping[str, int]) -> set[str]:
        """The primary keys of the images that have to be copied; to be asked again before that.

        Args:
            times: when each image was stored, by its primary key, as the planner read it.

        Raises:
            CollectionGone: the migration has ended.
        """
        source, is_older = self._generation()
        keys = list(times)
        has = self._store.fingerprints(source, keys)
        known = self._store.fingerprints(self._target, keys)
        return {
            pk
            for pk, indexed_at in times.items()
            if pk in has
            and has[pk].indexed_at == indexed_at
            and lacks(known.get(pk), indexed_at, is_older=is_older)
        }

    def orphans(self, times: Mapping[str, int]) -> list[str]:
        """The primary keys of copies whose image is not in the other generation any more.

        To be asked after the copies were stored: an image that is deleted later is deleted here,
        too.

        Args:
            times: as in `due`.
        """
        has = self._store.fingerprints(self._generation()[0], list(times))
        gone = [pk for pk in times if pk not in has]
        known = self._store.fingerprints(self._target, gone)
        return [pk for pk in gone if pk in known and known[pk].indexed_at == times[pk]]

    def _generation(self) -> tuple[Collection, bool]:
        """The generation to copy from, and whether clients may have written to the other one."""
        source = self._catalogue.generation(self._name, self._from)
        migration = self._catalogue.migration(self._name)
        if source is None or migration is None:
            raise CollectionGone("the migration has ended")
        return source, migration.swapped_at is not None


def namespace_of(item: Item, job: Job) -> str:
    """The namespace of an item: its own when it is copied, otherwise that of its job."""
    return item.stored.namespace if item.stored else job.new.namespace


def times_of(items: Mapping[str, Item]) -> dict[str, int]:
    """When each image was stored, by its primary key, as the planner read it."""
    return {pk: item.stored.indexed_at for pk, item in items.items() if item.stored}


def only(items: Mapping[str, Item], keys: Iterable[str]) -> dict[str, Item]:
    """The items with these primary keys, in their order."""
    kept = set(keys)
    return {pk: item for pk, item in items.items() if pk in kept}
