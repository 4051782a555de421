"""The source of a job over stored images."""

from collections.abc import Iterator

from clipfleet.common.collection import Collection
from clipfleet.common.ledger import Item, NewJob
from clipfleet.common.ledger.stored_images import LAST, ROW, is_last, shape_of
from clipfleet.common.store import CollectionGone, Record
from clipfleet.common.store.filters import Filter, parse_filter
from clipfleet.workers.planner.generation_source import Generations
from clipfleet.workers.planner.tracking import Selection
from clipfleet.workers.sources import Listed, SourceError
from clipfleet.workers.sources.notes import Notes

PAGE = 8_000  # images in one read, as many as the store reads at once
END = "end"  # the cursor after the last image of a job with a finishing step


class StoredImages:
    """The images of a collection, as far as the job asks for them. The cursor is the primary key.

    The last image of a job with a finishing step is marked as such. Images that are stored while
    the job is planned may be left out.

    Args:
        new: the job.
        generations: has the collection.
    """

    def __init__(self, new: NewJob, generations: Generations) -> None:
        self._new, self._parts = new, generations
        self.notes = Notes()

    def stream(self, after: str) -> Iterator[Listed]:
        if after == END:
            return
        finishes = shape_of(self._new.source).finishes
        before: Record | None = None
        for record in self._records(after):
            if before:
                yield Listed(_item(before), before.pk)
            before = record
        if before and not finishes:
            yield Listed(_item(before), before.pk)
        elif before:
            yield Listed(_item(before).model_copy(update={"read": LAST + before.pk}), END)
        elif finishes and after:  # the last image was deleted after all others were planned
            yield Listed(Item(id="the end of the job", uri="", read=LAST), END)

    def _records(self, after: str) -> Iterator[Record]:
        collection = self._collection()
        namespace, where = self._new.source["namespace"], self._where(collection)
        try:
            while page := self._parts.store.scan(
                collection, namespace=namespace, where=where, after=after, limit=PAGE, only_ids=True
            ):
                yield from page
                after = page[-1].pk
                if len(page) < PAGE:
                    return
        except CollectionGone as error:
            raise SourceError("the collection was deleted") from error

    def _where(self, collection: Collection) -> Filter | None:
        return parse_filter(self._new.source["filter"] or {}, collection.fields)

    def _collection(self) -> Collection:
        new = self._new
        collection = self._parts.catalogue.generation(new.collection, new.generation)
        if collection is None:
            raise SourceError("the collection was deleted")
        return collection

    def count(self) -> int:
        collection = self._collection()
        namespace, where = self._new.source["namespace"], self._where(collection)
        return self._parts.store.count(collection, namespace, where)

    def nothing_found(self) -> str:
        return ""


def _item(record: Record) -> Item:
    return Item(id=record.id, uri="", read=ROW + record.pk)


def without_last(selection: Selection) -> Selection | None:
    """What of a selection may be planned before all other images of the job are done.

    Returns:
        The selection without the last image of the job; None when that image is alone in it.
    """
    if not selection.planned or not is_last(selection.planned[-1].item):
        return selection
    earlier = selection.planned[:-1]
    return Selection(earlier, earlier[-1].cursor) if earlier else None
