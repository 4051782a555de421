"""The store port: keeps embeddings and searches them. Names of collections are in the catalogue.

The port uses no type of a vendor.
"""

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
    """The store does not answer in time, or refuses a call temporarily."""


class StoreRefuses(StoreUnavailable):
    """The store rejects our configuration (address, token, TLS, database).

    `detail` names the setting to change.
    """


class CollectionGone(NotFound):
    """The store does not have this generation of the collection, or not any more."""


@dataclass(frozen=True)
class Record:
    """One image as it is stored.

    Attributes:
        pk: its primary key, see `common/identity.py`.
        id: its id, chosen by the caller.
        namespace: its namespace.
        uri: where it came from.
        embedding: float32 [dim]; of length 0 when it was not requested.
        content_hash: 32 hex digits, see `common/identity.py`; "": unknown.
        job_id: the job that stored it; "": none.
        label: its label; "": none.
        bytes: the size of its file; 0: unknown.
        width: its width in pixels, as shown; 0: unknown.
        height: its height in pixels, as shown; 0: unknown.
        indexed_at: when it was stored, unix time in milliseconds.
        metadata: the declared fields of the collection and all other keys.
    """

    pk: str
    id: str
    namespace: str
    uri: str
    embedding: Vectors
    content_hash: str = ""
    job_id: str = ""
    label: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    indexed_at: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The values that filters compare, by field; a missing label or job is None."""
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
    """What decides whether an image has to be embedded again.

    Attributes:
        content_hash: changes with the bytes, the model, the label, the metadata or the URI.
        job_id: the job that stored the image.
        indexed_at: when it was stored, unix time in milliseconds.
    """

    content_hash: str
    job_id: str
    indexed_at: int = 0


@dataclass(frozen=True)
class Match:
    """A record that a search found.

    Attributes:
        record: the record.
        score: the cosine similarity or the dot product (higher is nearer), or the euclidean
            distance (lower is nearer), after the collection's metric.
    """

    record: Record
    score: float


class Store(Protocol):
    """The port of the store: the records of collections, and the search for the nearest ones.

    Implementations: `MilvusStore` for a service, `MemoryStore` for tests. Every call raises
    StoreUnavailable when the store is away or full, and StoreRefuses when it rejects our
    configuration. Calls with a collection raise CollectionGone when the store does not have this
    generation of it.
    """

    def create(self, collection: Collection) -> None:
        """Create an empty collection. The caller creates each generation once.

        Args:
            collection: the collection, whose metric, length of embeddings and fields decide its
                layout.

        Raises:
            StoreUnavailable: the store is away or full.
        """
        ...

    def drop(self, collection: Collection) -> None:
        """Delete a collection with its records. Deleting one that does not exist is no error.

        Args:
            collection: the generation to delete.

        Raises:
            StoreUnavailable: the store is away or full.
        """
        ...

    def count(
        self, collection: Collection, namespace: str | None = None, where: Filter | None = None
    ) -> int:
        """Count records. Every acknowledged write is seen.

        Args:
            collection: the collection.
            namespace: the namespace of the records; None: all namespaces.
            where: the filter that they pass; None: all records.

        Raises:
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
        ...

    def fingerprints(self, collection: Collection, keys: Sequence[str]) -> dict[str, Fingerprint]:
        """Read the fingerprints of records. Every acknowledged write is seen.

        Args:
            collection: the collection.
            keys: the primary keys of the records.

        Returns:
            The fingerprints by primary key. Keys without a record are left out.

        Raises:
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
        ...

    def present(self, collection: Collection, keys: Sequence[str]) -> set[str]:
        """Those of the primary keys that have records. Every acknowledged write is seen.

        Args:
            collection: the collection.
            keys: the primary keys.

        Raises:
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
        ...

    def fetch(
        self, collection: Collection, keys: Sequence[str], *, include_values: bool = True
    ) -> dict[str, Record]:
        """Read records. Every acknowledged write is seen.

        Args:
            collection: the collection.
            keys: the primary keys of the records.
            include_values: whether records have embeddings; otherwise these have length 0.

        Returns:
            The records by primary key. Keys without a record are left out.

        Raises:
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
        ...

    def upsert(self, collection: Collection, records: Sequence[Record]) -> None:
        """Insert records, and replace those with the same primary key.

        The write is acknowledged when the call returns. When the call raises, some of the records
        may be
        stored.

        Args:
            collection: the collection.
            records: the records, each with an embedding float32 [dim] of the collection's length.

        Raises:
            ValueError: two records have the same key.
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
        ...

    def update(self, collection: Collection, records: Sequence[Record]) -> None:
        """Replace everything but the embedding of records. Records that are not stored are left
        out.

        The caller holds the keys (`Catalogue.hold`): the store reads before it writes.

        Args:
            collection: the collection.
            records: the records. Their embeddings do not count.

        Raises:
            ValueError: two records have the same key.
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
        ...

    def delete(self, collection: Collection, keys: Sequence[str]) -> None:
        """Delete records by primary key. Keys without a record are no error.

        Args:
            collection: the collection.
            keys: the primary keys of the records.

        Raises:
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
        ...

    def search(
        self,
        collection: Collection,
        vectors: Vectors,
        *,
        namespace: str,
        top_k: int,
        offset: int = 0,
        where: Filter | None = None,
        include_values: bool = False,
        brief: bool = False,
        fresh: bool = True,
    ) -> list[list[Match]]:
        """Find the nearest records to each vector.

        Args:
            collection: the collection.
            vectors: the queries, float32 [n, dim].
            namespace: the namespace of the records.
            top_k: the number of matches for each vector at most.
            offset: the number of nearest matches to skip.
            where: the filter that records pass; None: all records.
            include_values: whether matches have embeddings; otherwise these have length 0.
            brief: whether records may lack their content hash, job, size and dates, which is
                faster.
            fresh: whether to see every write that was acknowledged. False is faster, and may miss
                the writes of the last seconds.

        Returns:
            Row i has the matches for vector i, the nearest first.

        Raises:
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.
        """
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
        """Read records page by page, in the order of their primary keys.

        A record that is stored during the whole scan is returned once, whatever is written
        meanwhile.

        Args:
            collection: the collection.
            namespace: the namespace of the records; None: all namespaces.
            where: the filter that records pass; None: all records.
            after: the primary key of the last record of the page before; "": the first page.
            limit: the number of records to return. Fewer are returned on the last page only.
            include_values: whether records have embeddings; otherwise these have length 0.
            only_ids: whether records have only `pk` and `id`, which is faster.

        Raises:
            CollectionGone: the store does not have this generation of the collection.
            StoreUnavailable: the store is away or full.

        Example:
            page = store.scan(collection, limit=1_000)
            while page:
                page = store.scan(collection, after=page[-1].pk, limit=1_000)
        """
        ...

    def missing(self, known: Sequence[Collection]) -> list[Collection]:
        """List those of the known collections that the store does not have.

        Args:
            known: generations from the catalogue.

        Returns:
            The missing ones, in the order of `known`.

        Raises:
            StoreUnavailable: the store is away or full.
        """
        ...

    def others(self, known: Sequence[Collection]) -> list[Collection]:
        """List the collections that the store has and that are not among the known ones.

        Collections of releases before 0.2 are left out: the store has no description of them. So
        are
        collections of another version.

        Args:
            known: generations from the catalogue.

        Raises:
            StoreUnavailable: the store is away or full.
        """
        ...

    def ping(self) -> None:
        """Make the cheapest call that needs valid credentials.

        Raises:
            StoreRefuses: the store rejects our configuration (address, token, TLS, database).
            StoreUnavailable: the store is away.
        """
        ...

    def version(self) -> str:
        """Ask for the version of the store.

        Returns:
            The version as the store gives it, such as "v2.6.1".

        Raises:
            StoreUnavailable: the store is away or full.
        """
        ...

    def has_mark(self, mark: str) -> bool:
        """Whether the store has this mark, see `common/process/deployment.py`.

        Args:
            mark: the id of a deployment, 16 hex digits.

        Raises:
            StoreUnavailable: the store is away or full.
        """
        ...

    def set_mark(self, mark: str) -> None:
        """Leave a mark in the store. Marks of other deployments stay.

        Args:
            mark: the id of a deployment, 16 hex digits.

        Raises:
            StoreUnavailable: the store is away or full.
        """
        ...


def kept_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata without null values: for a Milvus server, a key with null exists."""
    return {name: value for name, value in metadata.items() if value is not None}


def require_distinct(records: Sequence[Record]) -> None:
    """Raise ValueError when two records have the same primary key.

    Milvus stores both when one upsert has a key twice (milvus #44320).
    """
    if len({record.pk for record in records}) != len(records):
        raise ValueError("an upsert names a primary key twice")
