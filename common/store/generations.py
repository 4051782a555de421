"""Compares two generations of a collection, which have the same images and different models."""

from collections.abc import Iterator, Mapping, Sequence

from clipfleet.common.collection import Collection
from clipfleet.common.store import Fingerprint, Record, Store
from clipfleet.common.store.filters import parse_filter

PAGE = 1_000  # images in one read


def lacks(known: Fingerprint | None, indexed_at: int, *, is_older: bool) -> bool:
    """Whether a generation lacks an image, or has it as it was at another time.

    Args:
        known: what the generation has of the image; None: nothing.
        indexed_at: when the image was stored in the other generation, unix time in milliseconds.
        is_older: whether only an earlier time counts: both generations may have been written.
    """
    if known is None:
        return True
    return known.indexed_at < indexed_at if is_older else known.indexed_at != indexed_at


def missing_images(
    store: Store,
    source: Collection,
    target: Collection,
    *,
    since: int = 0,
    after: str = "",
    is_older: bool = False,
) -> Iterator[list[Record]]:
    """The images that one generation lacks or has as they were at another time, page by page.

    Args:
        store: has both generations.
        source: the generation that has the images.
        target: the other one.
        since: images that were stored earlier are left out, unix time in milliseconds; 0: none.
        after: the primary key after which to begin; "": at the beginning.
        is_older: as in `lacks`.

    Returns:
        Pages, each with the missing ones of the next PAGE images. Pages may be empty.

    Raises:
        CollectionGone: the store does not have one of the generations.
        StoreUnavailable: the store is away.
    """
    where = parse_filter({"indexed_at": {"$gte": since}}, {}) if since > 0 else None
    while page := store.scan(source, where=where, after=after, limit=PAGE):
        known = store.fingerprints(target, [row.pk for row in page])
        yield [row for row in page if lacks(known.get(row.pk), row.indexed_at, is_older=is_older)]
        after = page[-1].pk
        if len(page) < PAGE:
            return


def foreign_images(store: Store, source: Collection, target: Collection) -> Iterator[list[str]]:
    """The primary keys of the images of one generation that the other one does not have, by page.

    Args:
        store: has both generations.
        source: the generation that has all images.
        target: the one that may have others.

    Raises:
        CollectionGone: the store does not have one of the generations.
        StoreUnavailable: the store is away.
    """
    after = ""
    while page := store.scan(target, after=after, limit=PAGE, only_ids=True):
        keys = [row.pk for row in page]
        yield without(store, source, keys)
        after = keys[-1]
        if len(page) < PAGE:
            return


def without(store: Store, source: Collection, keys: Sequence[str]) -> list[str]:
    """Those of the keys that a generation does not have."""
    known: Mapping[str, Fingerprint] = store.fingerprints(source, keys)
    return [pk for pk in keys if pk not in known]
