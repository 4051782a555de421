"""Snapshots in the blob store: which images each source of a collection had, by primary key.

A snapshot is a set of entries, a primary key and a signature each, in sorted blobs. A job writes a
part before the chunk with these images can be claimed: whatever ends, no image is indexed that no
snapshot has. A base replaces bases and parts, which it names: it is in force from the moment at
which it is written, and what it replaces is deleted afterwards. Nothing is ever changed in place.
"""

import io
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.blobs import BlobGone, Blobs, BlobsUnavailable

Keys = NDArray[np.bytes_]  # [n], 16 bytes each
Signatures = NDArray[np.uint64]  # [n]
Mask = NDArray[np.bool_]
T = TypeVar("T")

UNKNOWN = 0  # the signature of an image that must be read
MAX_BYTES = 1 << 34  # of a blob
READERS = 16  # threads that read the blobs of a bucket
TRIES = 10  # while blobs are replaced by others
BASE, OF_JOB = "base-", "job-"


class Entries(NamedTuple):
    """Images by primary key.

    Attributes:
        keys: the keys, sorted and distinct, unless the context says otherwise.
        signatures: the signature of each image.
    """

    keys: Keys
    signatures: Signatures

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, mask: Mask) -> "Entries":
        """Some of the entries."""
        return Entries(self.keys[mask], self.signatures[mask])

    def unknown(self) -> "Entries":
        """The entries with unknown signatures."""
        return Entries(self.keys, np.zeros(len(self.keys), np.uint64))


def entries_of(digests: Sequence[bytes], signatures: Sequence[int]) -> Entries:
    """Entries in the order of their arguments.

    Args:
        digests: primary keys, 16 bytes each.
        signatures: their signatures, 0 to 2**64 - 1.
    """
    return Entries(keys_of(b"".join(digests)), np.array(signatures, np.uint64))


def keys_of(data: bytes) -> Keys:
    """Primary keys, 16 bytes after 16 bytes."""
    return np.frombuffer(data, "S16")


def as_text(keys: Keys) -> list[str]:
    """Primary keys as the store has them, 32 hex digits."""
    digits = keys.tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


NONE = entries_of([], [])


def merged(parts: Iterable[Entries]) -> Entries:
    """The union. An image with several signatures has the signature UNKNOWN.

    The parts are taken one by one. All in one array, entries take little more memory than their
    own size: keys and signatures are sorted as texts of 24 bytes.
    """
    data = bytearray()
    for part in parts:
        if not len(part):
            continue
        rows = np.empty((len(part), 24), np.uint8)
        rows[:, :16] = part.keys.view(np.uint8).reshape(-1, 16)
        rows[:, 16:] = part.signatures.astype(">u8").view(np.uint8).reshape(-1, 8)
        data += rows.data.cast("B")
    if not data:
        return NONE
    texts = np.frombuffer(data, "S24")
    texts.sort()
    table = texts.view(np.dtype([("key", "S16"), ("signature", ">u8")]))
    keys = table["key"]
    is_first = np.concatenate(([True], keys[1:] != keys[:-1]))
    if is_first.all():
        return Entries(np.ascontiguousarray(keys), table["signature"].astype(np.uint64))
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(keys)) - 1
    low, high = table["signature"][first], table["signature"][last]
    signatures = np.where(low == high, low, UNKNOWN).astype(np.uint64)
    return Entries(np.ascontiguousarray(keys[first]), signatures)


def where_in(keys: Keys, among: Keys) -> tuple[Mask, NDArray[np.intp]]:
    """Which keys are among others, and where.

    Args:
        keys: the keys, in any order.
        among: sorted keys.

    Returns:
        Whether each key is there, and its position, which means nothing where it is not.
    """
    if not len(among):
        return np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.intp)
    places = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return among[places] == keys, places


@dataclass
class Listing:
    """The blobs of the snapshot of one source.

    Attributes:
        bases: the names of bases.
        parts: the names of parts, by the id of the job that wrote them.
    """

    bases: list[str] = field(default_factory=list)
    parts: dict[str, list[str]] = field(default_factory=dict)

    def names(self, jobs: Iterable[str]) -> list[str]:
        """The names of the parts of these jobs."""
        return [name for job_id in jobs for name in self.parts.get(job_id, ())]


class Snapshots:
    """The snapshots of all sources of one generation of a collection.

    Every call may raise BlobsUnavailable.

    Args:
        blobs: the blob store.
        root: the beginning of the keys: `snapshots_of` a generation, or `dry_listing_of` a job.
    """

    def __init__(self, blobs: Blobs, root: str) -> None:
        self._blobs, self._root = blobs, root

    def add(self, origin: str, job_id: str, entries: Entries) -> None:
        """Write a part.

        Args:
            origin: the identity of the source.
            job_id: the job that lists the source.
            entries: images that it has listed, in any order.
        """
        name = f"{OF_JOB}{job_id}.{secrets.token_hex(8)}"
        self._write(f"{self._root}/{origin}/{name}", merged([entries]), ())

    def listings(self) -> dict[str, Listing]:
        """The blobs of all sources, by the identity of the source."""
        sources: dict[str, Listing] = {}
        for key in self._blobs.keys_below(self._root):
            origin, _, name = key.removeprefix(f"{self._root}/").partition("/")
            listing = sources.setdefault(origin, Listing())
            if name.startswith(BASE):
                listing.bases.append(name)
            elif name.startswith(OF_JOB):
                job_id = name.removeprefix(OF_JOB).partition(".")[0]
                listing.parts.setdefault(job_id, []).append(name)
        return sources

    def listing(self, origin: str) -> Listing:
        """The blobs of one source."""
        return self.listings().get(origin, Listing())

    def base(self, origin: str, listing: Listing) -> Entries:
        """What is in force of the bases of a source."""
        read = {name: self._read(origin, name) for name in listing.bases}
        replaced = {name for _, names in read.values() for name in names}
        in_force = [entries for name, (entries, _) in read.items() if name not in replaced]
        return in_force[0] if len(in_force) == 1 else merged(in_force)

    def parts(self, origin: str, listing: Listing, jobs: Iterable[str]) -> Entries:
        """The images in the parts of some jobs that no base in force replaces."""
        replaced = {name for base in listing.bases for name in self._read(origin, base)[1]}
        return self._merged_parts(
            origin, [name for name in listing.names(jobs) if name not in replaced]
        )

    def _merged_parts(self, origin: str, names: Sequence[str]) -> Entries:
        with ThreadPoolExecutor(1 if self._blobs.folder else READERS, "snapshot") as threads:
            return merged(part for part, _ in threads.map(lambda n: self._read(origin, n), names))

    def held(self, origin: str, keys: Keys) -> Mask:
        """Which keys the snapshots of other sources have."""
        mask = np.zeros(len(keys), np.bool_)
        for other, listing in self.listings().items():
            if other != origin and not mask.all():
                entries = [self.base(other, listing), self.parts(other, listing, listing.parts)]
                for part in entries:
                    mask |= where_in(keys, part.keys)[0]
        return mask

    def written(self, origin: str, listing: Listing, job_id: str) -> Entries:
        """The images in the parts of a job, whether a base replaces them or not."""
        return self._merged_parts(origin, listing.names([job_id]))

    def write_base(
        self, origin: str, entries: Entries, listing: Listing, jobs: Sequence[str]
    ) -> None:
        """Write a base in place of the bases and of the parts of some jobs; `delete` those then."""
        names = [*listing.bases, *listing.names(jobs)]
        self._write(f"{self._root}/{origin}/{BASE}{secrets.token_hex(8)}", entries, names)

    def delete(self, origin: str, listing: Listing, jobs: Sequence[str]) -> None:
        """Delete what a base replaces."""
        names = [*listing.bases, *listing.names(jobs)]
        self._blobs.delete_all([f"{self._root}/{origin}/{name}" for name in names])

    def compact(self, origin: str, listing: Listing, ended: Sequence[str]) -> None:
        """Put the parts of jobs that have ended into the base.

        Whether such a job indexed what it listed is not known: its images stay known only where
        the base agrees.
        """
        base, parts = self.base(origin, listing), self.parts(origin, listing, ended)
        self.write_base(origin, agreed(base, parts), listing, ended)
        self.delete(origin, listing, ended)

    def _write(self, key: str, entries: Entries, replaces: Sequence[str]) -> None:
        head = json.dumps({"v": 1, "n": len(entries), "replaces": list(replaces)}).encode()
        writer = self._blobs.create(key)
        try:
            writer.write(head + b" " * (-(len(head) + 1) % 8) + b"\n")  # numbers are aligned
            writer.write(entries.keys.tobytes())
            writer.write(entries.signatures.astype("<u8").tobytes())
        except BaseException:
            with suppress(BlobsUnavailable):
                writer.discard()
            raise
        writer.close()

    def _read(self, origin: str, name: str) -> tuple[Entries, list[str]]:
        """The entries of a blob and what it replaces. One that was not written whole has none."""
        data = self._blobs.get(f"{self._root}/{origin}/{name}", MAX_BYTES)
        end = data.find(b"\n")
        try:
            fields = json.loads(data[:end]) if end > 0 else {}
        except ValueError:
            fields = {}
        count = fields.get("n", -1)
        if fields.get("v") != 1 or len(data) - end - 1 != 24 * count:
            return NONE, []
        keys = np.frombuffer(data, "S16", count, end + 1)
        signatures = np.frombuffer(data, "<u8", count, end + 1 + 16 * count)
        return Entries(keys, signatures.astype(np.uint64, copy=False)), list(fields["replaces"])


def agreed(base: Entries, parts: Entries) -> Entries:
    """The union, in which signatures are known only where the base has them and no part differs."""
    if not len(parts):
        return base
    both = merged([base, parts])
    known, _ = where_in(both.keys, base.keys)
    return Entries(both.keys, np.where(known, both.signatures, np.uint64(UNKNOWN)))


def consistently(read: Callable[[], T]) -> T:
    """Call `read`, again while blobs that it has listed are replaced by others.

    Raises:
        BlobsUnavailable: the blob store is away, or has lost blobs.
    """
    for _ in range(TRIES):
        try:
            return read()
        except BlobGone:
            continue
    raise BlobsUnavailable("the snapshot of a source changes all the time; another try may help")


def snapshots_of(generation: str) -> str:
    """The beginning of the keys of the snapshots of a generation, without a slash."""
    return f"snapshots/{generation}"


def mirror_of(job_id: str) -> str:
    """The beginning of the keys of the blobs that a mirror has for itself, without a slash.

    They are deleted with the job.
    """
    return f"mirrors/{job_id}"


def dry_listing_of(job_id: str) -> str:
    """The beginning of the keys of what a dry run lists, without a slash."""
    return f"{mirror_of(job_id)}/listed"


class Missing:
    """The images that are gone from the source of a mirror, in the blob store.

    Their ids are in pages of PAGE, so that any of them is found by its number. Their keys are
    written last: once they are there, all is.

    Args:
        blobs: the blob store.
        job_id: the job.
    """

    PAGE = 1_000

    def __init__(self, blobs: Blobs, job_id: str) -> None:
        self._blobs, self._root = blobs, f"{mirror_of(job_id)}/missing"

    def write(self, batches: Iterable[tuple[Keys, Sequence[str]]], others: int) -> "Gone":
        """Write the images.

        Args:
            batches: keys, and the ids of these images.
            others: the number of images that the source had beside these.
        """
        page, pages, keys = list[str](), 0, [NONE.keys]
        for batch, ids in batches:
            keys.append(batch)
            page += ids
            while len(page) >= self.PAGE:
                self._put(str(pages), json.dumps(page[: self.PAGE]).encode())
                page, pages = page[self.PAGE :], pages + 1
        self._put(str(pages), json.dumps(page).encode())
        every = np.concatenate(keys)
        gone = Gone(every, others + len(every))
        self._put("keys", f"{len(every)} {gone.of}\n".encode() + every.tobytes())
        return gone

    def gone(self) -> "Gone | None":
        """The images; None before `write` has ended."""
        try:
            data = self._blobs.get(f"{self._root}/keys", MAX_BYTES)
        except BlobGone:
            return None
        head, newline, body = data.partition(b"\n")
        count, _, of = head.partition(b" ")
        is_complete = bool(newline) and len(body) == 16 * int(count)
        return Gone(keys_of(body), int(of)) if is_complete else None

    def ids(self, offset: int, limit: int) -> list[str]:
        """Ids from a number on; fewer than `limit` where they end."""
        ids: list[str] = []
        while len(ids) < limit:
            number, begin = divmod(offset + len(ids), self.PAGE)
            try:
                page = json.loads(self._blobs.get(f"{self._root}/{number}", MAX_BYTES))
            except BlobGone:
                break
            ids += page[begin : begin + limit - len(ids)]
            if len(page) < self.PAGE:
                break
        return ids

    def _put(self, name: str, data: bytes) -> None:
        self._blobs.put(f"{self._root}/{name}", io.BytesIO(data))


class Gone(NamedTuple):
    """Images that are gone from a source.

    Attributes:
        keys: their keys, in any order.
        of: the number of images that the source had.
    """

    keys: Keys
    of: int
