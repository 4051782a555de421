"""Maps of collections in the blob store: where each image is in two dimensions.

A map is of one namespace. Its points are in pages; its head is written last, under a new name, so
that a map is there as a whole or not at all. All is deleted with the collection.
"""

import hashlib
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from clipfleet.common.blobs import BlobGone, Blobs, BlobsUnavailable

PAGE_POINTS = 10_000
MAX_BYTES = 1 << 28  # of a page
TRIES = 10  # while heads are replaced by others
OTHER, NONE = -1, -2  # codes of values that are rare, and of images without the field

Value = str | int | float | bool
M = TypeVar("M", bound=BaseModel)


class Colours(BaseModel):
    """The values of a field on a map.

    Attributes:
        values: the most frequent values, the most frequent first; or ranges of numbers.
        counts: how many points have each of them.
        other: the number of points with other values.
        none: the number of points without a value.
    """

    values: list[Value]
    counts: list[int]
    other: int = 0
    none: int = 0


class MapHead(BaseModel):
    """What is known of a map.

    Attributes:
        v: the version of this record.
        job_id: the job that made it.
        namespace: the namespace of its images.
        began_at: when the job began, unix seconds: later images are not on the map.
        made_at: when it was finished, unix seconds.
        method: how the points were placed.
        seed: the seed of the layout.
        points: the number of points.
        sampled: how many of them PaCMAP placed; the others are beside their neighbours.
        fields: the fields that points can be coloured by.
    """

    v: Literal[1] = 1
    job_id: str
    namespace: str
    began_at: float
    made_at: float
    method: Literal["pca", "pacmap"]
    seed: int
    points: int
    sampled: int
    fields: dict[str, Colours]


class Page(BaseModel):
    """Some points of a map, as columns.

    Attributes:
        ids: the ids of the images.
        x: from 0 to 1, left to right.
        y: from 0 to 1, bottom to top.
        codes: for each field, the index of each point's value in `Colours.values`, OTHER or NONE.
    """

    ids: list[str]
    x: list[float]
    y: list[float]
    codes: dict[str, list[int]]


class Place(NamedTuple):
    """The name of a head: it sorts by the time at which the map was made."""

    made_ms: int
    job_id: str

    @classmethod
    def of(cls, head: MapHead) -> "Place":
        """The name of the head of a map."""
        return cls(round(head.made_at * 1000), head.job_id)


class Maps:
    """The maps of one collection and namespace. Every call may raise BlobsUnavailable.

    Args:
        blobs: the blob store.
        results: `results_of` the collection.
        namespace: the namespace.
    """

    def __init__(self, blobs: Blobs, results: str, namespace: str) -> None:
        digest = hashlib.blake2b(namespace.encode(), digest_size=16).hexdigest()
        self._blobs, self._root = blobs, f"{results}/map/{digest}"

    def write(self, head: MapHead, pages: Sequence[Page]) -> None:
        """Write a map, and delete those that were made before."""
        before = [place for place in self._places() if place < Place.of(head)]
        for number, page in enumerate(pages):
            self._put(f"{head.job_id}/{number}.json", page)
        made_ms, job_id = Place.of(head)
        self._put(f"heads/{made_ms:015d}-{job_id}.json", head)
        for place in before:
            self._delete(place, keep=head.job_id)

    def head(self) -> MapHead | None:
        """The map that was made last; None when there is none."""
        for _ in range(TRIES):
            try:
                for place in reversed(self._places()):
                    raw = self._get(self._head_key(place))
                    head = _parsed(MapHead, raw)
                    if head is not None:
                        return head
            except BlobGone:
                continue
            return None
        raise BlobsUnavailable("the map is replaced all the time; another try may help")

    def page(self, head: MapHead, number: int) -> Page:
        """A page of a map, from 0.

        Raises:
            BlobGone: the map was replaced meanwhile.
        """
        page = _parsed(Page, self._get(f"{head.job_id}/{number}.json"))
        if page is None:
            raise BlobGone(f"page {number}")
        return page

    def _places(self) -> list[Place]:
        names = (key.rpartition("/")[2] for key in self._blobs.keys_below(f"{self._root}/heads"))
        parts = (name.removesuffix(".json").partition("-") for name in names)
        return sorted(Place(int(made_ms), job_id) for made_ms, _, job_id in parts)

    def _head_key(self, place: Place) -> str:
        return f"heads/{place.made_ms:015d}-{place.job_id}.json"

    def _delete(self, place: Place, keep: str) -> None:
        self._blobs.delete(f"{self._root}/{self._head_key(place)}")
        if place.job_id != keep:
            self._blobs.delete_below(f"{self._root}/{place.job_id}")

    def _put(self, name: str, value: BaseModel) -> None:
        self._blobs.put(f"{self._root}/{name}", io.BytesIO(value.model_dump_json().encode()))

    def _get(self, name: str) -> bytes:
        return self._blobs.get(f"{self._root}/{name}", MAX_BYTES)


def _parsed(kind: type[M], raw: bytes) -> M | None:
    """The record; None for one that was not written whole, or by a later release."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError:
        return None
