"""The store port: where embeddings live and are searched. No vendor's type crosses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.collection import Collection
from clipfleet.common.errors import NotFound, Unavailable
from clipfleet.common.store.filters import Filter

Vectors = NDArray[np.float32]


class StoreUnavailable(Unavailable):
    """The store did not answer in time, or refused for a passing reason."""


class StoreRefuses(StoreUnavailable):
    """The store is there and will not have us as we are set up. It says what to set otherwise."""


class CollectionGone(NotFound):
    """This generation of the collection is not in the store (any more)."""


@dataclass(frozen=True)
class Record:
    """One image as it is stored. `metadata` holds declared fields and free-form keys alike."""

    pk: str
    id: str
    namespace: str
    uri: str
    embedding: Vectors  # [dim]
    content_hash: str = ""
    job_id: str = ""
    label: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    indexed_at: int = 0  # unix time, milliseconds
    metadata: dict[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """What a filter sees: a missing label is None."""
        own = {
            "id": self.id,
            "uri": self.uri,
            "label": self.label or None,
            "job_id": self.job_id or None,
            "bytes": self.bytes,
            "width": self.width,
            "height": self.height,
            "indexed_at": self.indexed_at,
        }
        return {**self.metadata, **own}


@dataclass(frozen=True)
class Fingerprint:
    """What decides whether an image has to be embedded again."""

    content_hash: str
    job_id: str


@dataclass(frozen=True)
class Match:
    """One hit. `score`: cosine similarity or dot product (higher is nearer), or for the
    euclidean metric the distance itself (lower is nearer). Matches come nearest first."""

    record: Record
    score: float


class Store(Protocol):
    """Every call raises StoreUnavailable or CollectionGone where that is the case."""

    def create(self, collection: Collection) -> None: ...

    def drop(self, collection: Collection) -> None:
        """Dropping what is not there is no error."""
        ...

    def count(
        self, collection: Collection, namespace: str | None = None, where: Filter | None = None
    ) -> int:
        """Without a namespace, of all of them."""
        ...

    def fingerprints(
        self, collection: Collection, keys: Sequence[str]
    ) -> dict[str, Fingerprint]: ...

    def fetch(self, collection: Collection, keys: Sequence[str]) -> dict[str, Record]:
        """The records that exist, embeddings included, by primary key."""
        ...

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        """Write or overwrite; all keys must differ, and all embeddings be of the right length."""
        ...

    def delete(self, collection: Collection, keys: Sequence[str]) -> None: ...

    def search(
        self,
        collection: Collection,
        vectors: Vectors,  # [n, dim]
        *,
        namespace: str,
        top_k: int,
        offset: int = 0,
        where: Filter | None = None,
        include_values: bool = False,
        fresh: bool = True,
    ) -> list[list[Match]]:
        """Row i answers vector i. `fresh`: see every write that was acknowledged."""
        ...

    def scan(
        self,
        collection: Collection,
        *,
        namespace: str | None = None,
        where: Filter | None = None,
        after: str = "",
        limit: int,
        include_values: bool = False,
        only_ids: bool = False,
    ) -> list[Record]:
        """The first `limit` records with a primary key above `after`, in the keys' order; fewer
        only when there are no more. A record that stays during a scan from page to page appears
        once, whatever is written meanwhile. `only_ids`: of each only `pk` and `id`."""
        ...

    def missing(self, known: Sequence[Collection]) -> list[Collection]:
        """Those of the known ones that it does not hold."""
        ...

    def others(self, known: Sequence[Collection]) -> list[Collection]:
        """Those that it holds beside the known ones. Collections that were made by a release
        before 0.2 are left out: with them lies no record of what they are."""
        ...

    def ping(self) -> None: ...

    def version(self) -> str:
        """As the store says it."""
        ...

    def marked(self, mark: str) -> bool: ...

    def mark(self, mark: str) -> None:
        """Leave a mark that `marked` finds, beside others: common/process/deployment.py."""
        ...


def kept_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Null is no value: a Milvus server takes such a key for one that is there."""
    return {name: value for name, value in metadata.items() if value is not None}


def require_distinct(records: Sequence[Record]) -> None:
    """Milvus keeps both when one upsert names a key twice (milvus #44320)."""
    if len({record.pk for record in records}) != len(records):
        raise ValueError("an upsert names a primary key twice")
