"""The duplicates of a collection in the blob store: the result of a run, and what is kept apart.

A run writes its groups in parts, and then the summary, which names the run: from that moment on the
result is in force. Images that a caller calls no duplicates are kept apart: each such set is a blob
of its own, named by its keys, so that nothing is ever changed in place.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict
from clipfleet.common.http.duplicates import Keep, Tier

PART_GROUPS = 50  # in one blob
MAX_BYTES = 1 << 30
MAX_SETS = 5_000  # of images kept apart, in one collection
SUMMARY = "summary.json"
MARGIN_MS = 600_000  # clocks of gateways and workers may differ


class Member(BaseModel):
    """One image of a group, as it was when the run looked at it.

    Attributes:
        pk: its primary key.
        content_hash: its content hash; "": unknown.
        indexed_at: when it was stored, unix time in milliseconds.
        like: images of a group with equal numbers have the same bytes; 0: the leader's.
        similarity: the cosine similarity with the leader of the group.
    """

    model_config = ConfigDict(frozen=True)

    pk: str
    content_hash: str
    indexed_at: int
    like: int = 0
    similarity: float = 1.0


class Group(BaseModel):
    """Images that are duplicates of the first one, the leader, in the order in which to keep them.

    Attributes:
        members: two or more.
    """

    model_config = ConfigDict(frozen=True)

    members: tuple[Member, ...]


class Part(BaseModel):
    """Up to PART_GROUPS groups of one tier."""

    v: Literal[1] = 1
    groups: tuple[Group, ...]


class Summary(BaseModel):
    """What a run looked for, and how much it has.

    Attributes:
        v: the version of this record.
        job: the job.
        made_at: when its images were read, unix seconds.
        threshold: the cosine similarity from which images are near.
        keep: which image of a group it suggests to keep.
        namespace: the namespace of the images; None: all, each by itself.
        images: the number of images that were compared.
        exact: the number of groups with the same bytes.
        near: the number of groups of near images.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    job: str
    made_at: float
    threshold: float
    keep: Keep
    namespace: str | None
    images: int
    exact: int
    near: int

    def count(self, tier: Tier) -> int:
        """The number of groups of a tier."""
        return self.exact if tier == "exact" else self.near


class ResultReplaced(Conflict):
    """The groups were replaced by those of a later run."""


def duplicates_of(generation: str) -> str:
    """The prefix of the keys of all results about the duplicates of a generation."""
    return f"analysis/{generation}/duplicates"


def apart_of(lineage: str) -> str:
    """The prefix of the keys of all sets of images kept apart, see `Collection.snapshots`."""
    return f"apart/{lineage}"


def write_result(
    blobs: Blobs,
    collection: Collection,
    summary: Summary,
    groups: Mapping[Tier, Sequence[Group]],
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Write the groups and then the summary, and delete the groups of other runs.

    Raises:
        BlobsUnavailable: the blob store is away or full.
    """
    prefix = duplicates_of(collection.generation)
    for tier, some in groups.items():
        for number, start in enumerate(range(0, len(some), PART_GROUPS)):
            part = Part(groups=tuple(some[start : start + PART_GROUPS]))
            _put(blobs, f"{prefix}/{summary.job}/{tier}-{number}.json", part.model_dump_json())
            progress()
    _put(blobs, f"{prefix}/{SUMMARY}", summary.model_dump_json())
    others = {key.removeprefix(f"{prefix}/").split("/")[0] for key in blobs.keys_below(prefix)}
    for other in sorted(others - {summary.job, SUMMARY}):
        blobs.delete_below(f"{prefix}/{other}")
        progress()


def read_summary(blobs: Blobs, collection: Collection) -> Summary | None:
    """The summary of the last run; None when there is none.

    Raises:
        BlobsUnavailable: the blob store is away.
    """
    try:
        raw = blobs.get(f"{duplicates_of(collection.generation)}/{SUMMARY}", MAX_BYTES)
        return Summary.model_validate_json(raw)
    except (BlobGone, ValidationError):  # the latter: it is being written
        return None


def read_groups(
    blobs: Blobs, collection: Collection, summary: Summary, tier: Tier, number: int
) -> tuple[Group, ...]:
    """The groups of one part.

    Raises:
        ResultReplaced: a later run has replaced them.
        BlobsUnavailable: the blob store is away.
    """
    key = f"{duplicates_of(collection.generation)}/{summary.job}/{tier}-{number}.json"
    try:
        return Part.model_validate_json(blobs.get(key, MAX_BYTES)).groups
    except (BlobGone, ValidationError) as error:
        raise replaced() from error


def replaced() -> ResultReplaced:
    """The error for groups of a run that is no longer the last one."""
    return ResultReplaced("a later run has replaced these groups; begin again without a cursor")


def keep_apart(blobs: Blobs, collection: Collection, keys: Iterable[str]) -> None:
    """Remember that images are no duplicates of each other.

    Args:
        keys: their primary keys, two or more.

    Raises:
        Conflict: the collection has MAX_SETS such sets.
        BlobsUnavailable: the blob store is away or full.
    """
    own = sorted(set(keys))
    prefix, digest = apart_of(collection.snapshots), hashlib.blake2b(digest_size=16)
    digest.update("".join(own).encode())
    known = blobs.keys_below(prefix)
    if any(key.endswith(f"-{digest.hexdigest()}.json") for key in known):
        return
    if len(known) >= MAX_SETS:
        raise Conflict(
            f"{MAX_SETS} groups of this collection are marked as no duplicates, which is the limit"
        )
    name = f"{int(time.time() * 1000):013d}-{digest.hexdigest()}.json"
    _put(blobs, f"{prefix}/{name}", json.dumps({"v": 1, "keys": own}))


def read_apart(
    blobs: Blobs,
    collection: Collection,
    since: float = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[frozenset[str]]:
    """The sets of images that are kept apart.

    Args:
        since: only those that were marked at this time or later, unix seconds, or little earlier.

    Raises:
        BlobsUnavailable: the blob store is away.
    """
    prefix = apart_of(collection.snapshots)
    from_ms = int(since * 1000) - MARGIN_MS if since else 0
    sets = []
    for key in blobs.keys_below(prefix):
        name = key.rpartition("/")[2]
        if int(name.partition("-")[0]) >= from_ms:
            try:
                content: dict[str, Any] = json.loads(blobs.get(key, MAX_BYTES))
                sets.append(frozenset(content["keys"]))
            except (BlobGone, ValueError, KeyError):  # written in part: its request has failed
                continue
            progress()
    return sets


def numbered(sets: Sequence[frozenset[str]]) -> dict[str, list[int]]:
    """The numbers of the sets that each primary key is in."""
    numbers: dict[str, list[int]] = {}
    for number, keys in enumerate(sets):
        for pk in keys:
            numbers.setdefault(pk, []).append(number)
    return numbers


def _put(blobs: Blobs, key: str, text: str) -> None:
    blobs.put(key, io.BytesIO(text.encode()))
