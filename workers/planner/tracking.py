"""Sources whose images are recorded in a snapshot, and that leave out what has not changed."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice

import numpy as np

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import NotFound
from clipfleet.common.identity import KeyMaker, id_problem
from clipfleet.common.ledger import FINAL, Ledger, NewJob
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.ledger.notes import CHANGED, NEW
from clipfleet.common.snapshots import (
    NONE,
    UNKNOWN,
    Entries,
    Keys,
    Mask,
    Snapshots,
    agreed,
    as_text,
    consistently,
    dry_listing_of,
    entries_of,
    snapshots_of,
    where_in,
)
from clipfleet.common.store import CollectionGone, Store
from clipfleet.common.versions import OtherVersion
from clipfleet.workers.sources import Listed, Source, SourceError, signatures
from clipfleet.workers.sources.notes import Notes

BATCH = 2_048  # images that are looked up at once
MAX_COMPARED = 4 * BATCH  # images of one step
MAX_SALTS = 10_000
MANY_PARTS = 200  # that jobs for some images of a source leave before they are put together


class Feed:
    """The images of a source, in their order, some of which are put back.

    Args:
        listed: the images.
    """

    def __init__(self, listed: Iterable[Listed] = ()) -> None:
        self._listed = iter(listed)

    def take(self, size: int, until: float) -> list[Listed]:
        """Take up to `size` images, fewer when the source is slow, so that workers need not wait.

        Images that were listed before an error are returned; the next call raises the error.

        Args:
            size: the number of images.
            until: when to end with the images so far, monotonic seconds.
        """
        entries: list[Listed] = []
        try:
            for entry in islice(self._listed, size):
                entries.append(entry)
                if time.monotonic() > until:
                    break
        except SourceError as error:
            if not entries:
                raise
            self.fail(error)
        return entries

    def put_back(self, entries: Iterable[Listed]) -> None:
        """Return images, which are taken again."""
        self._listed = chain(entries, self._listed)

    def fail(self, error: SourceError) -> None:
        """Raise the error at the next call."""
        self._listed = _raising(error)


def _raising(error: SourceError) -> Iterator[Listed]:
    raise error
    yield


@dataclass
class Selection:
    """What a step has listed.

    Attributes:
        planned: the images that need work.
        cursor: where the source continues.
        skipped: the number of the other images.
        notes: counts for the job's notes.
    """

    planned: list[Listed]
    cursor: str = ""
    skipped: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def is_end(self) -> bool:
        """Whether the source has no more images."""
        return not self.planned and not self.skipped


@dataclass(frozen=True)
class TrackingParts:
    """What tracking needs.

    Attributes:
        ledger: says which jobs have ended.
        store: says which images are indexed.
        catalogue: the collections.
        blobs: has the snapshots.
    """

    ledger: Ledger
    store: Store
    catalogue: Catalogue
    blobs: Blobs


class Tracked:
    """A source that records what it lists.

    Args:
        source: lists the images.
        new: the job.
        collection: its collection.
        parts: services.

    Attributes:
        notes: those of the source.
    """

    def __init__(
        self, source: Source, new: NewJob, collection: Collection, parts: TrackingParts
    ) -> None:
        self._source, self._new, self._parts = source, new, parts
        self._is_dry = new.mirror is not None and new.mirror.dry_run
        self._collection = collection
        self._snapshots = Snapshots(parts.blobs, snapshots_of(collection.snapshots))
        self._dry = Snapshots(parts.blobs, dry_listing_of(new.id))
        self._keys = KeyMaker(new.namespace)
        self._salts: dict[str, int] = {}
        self._known = NONE
        self._threads = ThreadPoolExecutor(1, "present")  # its thread begins with the first look-up

    @property
    def notes(self) -> Notes:
        return self._source.notes

    @notes.setter
    def notes(self, notes: Notes) -> None:
        self._source.notes = notes

    def count(self) -> int:
        return self._source.count()

    def nothing_found(self) -> str:
        return self._source.nothing_found()

    def stream(self, after: str) -> Iterator[Listed]:
        if not after and not self._is_dry:
            self._begin()
        if self._new.mirror:
            self._known = consistently(self._load)
        return self._source.stream(after)

    def _begin(self) -> None:
        """Announce the job in the snapshot, and put parts of jobs that have ended into the base.

        Not while another job lists this source: what was listed since a mirror began is not what
        the mirror compares with.
        """
        origin, job_id = self._new.origin, self._new.id
        self._snapshots.add(origin, job_id, NONE)
        threshold = MANY_PARTS if self._new.incremental else 0

        def compact() -> None:
            listing = self._snapshots.listing(origin)
            others = [other for other in listing.parts if other != job_id]
            ended = [other for other in others if self._has_ended(other)]
            is_free = self._new.mirror is not None or len(ended) == len(others)
            count = len(listing.names(ended))
            if is_free and count > threshold:
                self._snapshots.compact(origin, listing, ended)

        consistently(compact)

    def _has_ended(self, job_id: str) -> bool:
        try:
            return self._parts.ledger.job(job_id).state in FINAL
        except NotFound:
            return True
        except OtherVersion:
            return False

    def _load(self) -> Entries:
        """What is known of the images: what no other job that lists the source has changed."""
        origin = self._new.origin
        listing = self._snapshots.listing(origin)
        base = self._snapshots.base(origin, listing)
        others = [job_id for job_id in listing.parts if job_id != self._new.id]
        return agreed(base, self._snapshots.parts(origin, listing, others))

    def select(self, feed: Feed, size: int, until: float) -> Selection:
        """List images until so many need work, and record all of them.

        Args:
            feed: the images.
            size: the number of images that need work at most.
            until: when to end with the images so far, monotonic seconds.

        Raises:
            BlobsUnavailable, StoreUnavailable: another try may help.
        """
        listed: list[Listed] = []
        parts = list[Entries]()
        checks = list[Check]()
        needed = size
        while needed > 0 and len(listed) < MAX_COMPARED:
            try:
                entries = feed.take(min(needed, BATCH), until)
            except SourceError as error:
                if not listed:
                    raise
                feed.fail(error)
                break
            if not entries:
                break
            part = self._signed(entries)
            check = self._check(part)
            listed += entries
            parts.append(part)
            checks.append(check)
            needed -= 0 if self._is_dry else int(len(part) - check.maybe.sum())
            if time.monotonic() > until:
                break
        if not listed:
            return Selection([])
        every = Entries(*map(np.concatenate, zip(*parts, strict=True)))
        same = np.concatenate([check.same() for check in checks])
        if self._is_dry:
            notes = self._compare(listed, checks)
            self._dry.add(self._new.origin, self._new.id, every)
            return Selection([], listed[-1].cursor, len(listed), notes)
        work = np.flatnonzero(~same)
        if len(work) > size:  # rows have been deleted
            end = int(work[size])
            feed.put_back(listed[end:])
            listed, work = listed[:end], work[:size]
            every = Entries(every.keys[:end], every.signatures[:end])
        self._snapshots.add(self._new.origin, self._new.id, every)
        planned = [listed[number] for number in work]
        return Selection(planned, listed[-1].cursor, len(listed) - len(planned))

    def _check(self, part: Entries) -> "Check":
        """Begin to look up which images are indexed, while further ones are listed."""
        maybe = self._may_be_same(part)
        looked_up = np.ones(len(part), np.bool_) if self._is_dry else maybe
        if not looked_up.any():
            return Check(maybe, looked_up, None)
        return Check(maybe, looked_up, self._threads.submit(self._present, part.keys[looked_up]))

    def _signed(self, entries: list[Listed]) -> Entries:
        """The keys and signatures of images, in their order."""
        key, signature = self._keys.digest, self._signature
        digests, numbers = list[bytes](), list[int]()
        for entry in entries:
            item = entry.item
            has_id = not item.problem or not id_problem(item.id)
            digests.append(key(item.id) if has_id else _NO_KEY)
            numbers.append(signature(entry))
        return entries_of(digests, numbers)

    def _signature(self, entry: Listed) -> int:
        """The signature of an image with its label and metadata."""
        item = entry.item
        if item.problem:
            return UNKNOWN
        number = entry.signature or signatures.of_item(item)
        if not number:
            return UNKNOWN
        if item.metadata:
            label = json.dumps([item.label, item.metadata], sort_keys=True, default=str)
            return (number ^ signatures.of_text(f"{label} {self._new.exif}")) or 1
        salt = self._salts.get(item.label)
        if salt is None:
            if len(self._salts) >= MAX_SALTS:
                self._salts.clear()
            salt = signatures.of_text(f"{json.dumps([item.label])} {self._new.exif}")
            self._salts[item.label] = salt
        return (number ^ salt) or 1

    def _may_be_same(self, entries: Entries) -> Mask:
        """Which images have the signature that they had when they were indexed."""
        if self._new.mirror is None or self._new.on_existing == "replace":
            return np.zeros(len(entries), np.bool_)
        is_known, places = where_in(entries.keys, self._known.keys)
        if not is_known.any():
            return is_known
        same = self._known.signatures[places] == entries.signatures
        mask: Mask = is_known & same & (entries.signatures != UNKNOWN)
        return mask

    def _present(self, keys: Keys) -> Mask:
        """Which of the images are indexed."""
        return present(self._parts.store, self._collection, keys)

    def _compare(self, listed: list[Listed], checks: "Sequence[Check]") -> dict[str, int]:
        """The numbers of images that are new, and of those that may have changed."""
        is_indexed = np.concatenate([check.present() for check in checks])
        same = np.concatenate([check.same() for check in checks])
        is_image = np.array([not entry.item.problem for entry in listed])
        counts = {
            NEW: int((is_image & ~is_indexed).sum()),
            CHANGED: int((is_image & is_indexed & ~same).sum()),
        }
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class Check:
    """A look-up of some images.

    Attributes:
        maybe: which of them have the signature with which they were indexed.
        looked_up: which of them are looked up.
        answer: which of those are indexed; None if none is looked up.
    """

    maybe: Mask
    looked_up: Mask
    answer: "Future[Mask] | None"

    def present(self) -> Mask:
        """Which images are indexed, as far as they were looked up. Waits for the answer."""
        mask = np.zeros(len(self.looked_up), np.bool_)
        if self.answer is not None:
            mask[self.looked_up] = self.answer.result()
        return mask

    def same(self) -> Mask:
        """Which images are indexed and have not changed. Waits for the answer."""
        return self.maybe & self.present()


def tracked(source: Source, new: NewJob, parts: TrackingParts) -> Source:
    """The source, tracked unless the collection was deleted: then a worker ends the job."""
    collection = parts.catalogue.generation(new.collection, new.generation)
    if collection is None:
        return source
    return Tracked(source, new, collection, parts)


_NO_KEY = blake2b(b"no image", digest_size=16).digest()


def present(store: Store, collection: Collection, keys: Keys) -> Mask:
    """Which images of a collection are indexed.

    Raises:
        SourceError: the collection was deleted.
    """
    if not len(keys):
        return np.zeros(0, np.bool_)
    names = as_text(keys)
    try:
        there = store.present(collection, names)
    except CollectionGone as error:
        raise SourceError(error.detail) from error
    return np.array([name in there for name in names])
