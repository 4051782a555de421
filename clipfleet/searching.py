"""The searches of both clients."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from clipfleet import searches
from clipfleet.calls import Call
from clipfleet.common.http.schemas import SearchOptions
from clipfleet.errors import ProblemError
from clipfleet.payloads import AnImage, Numbers
from clipfleet.results import SearchResult

T = TypeVar("T")


class Searching(ABC):
    """The searches of `Client`."""

    @abstractmethod
    def _do(self, call: Call[T]) -> T: ...

    def search(
        self,
        collection: str = "images",
        *,
        text: str | None = None,
        image: AnImage | None = None,
        id: str | None = None,
        vector: Numbers | None = None,
        terms: Sequence[Mapping[str, Any]] | None = None,
        top_k: int = 10,
        offset: int = 0,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        collapse: float | None = None,
        namespace: str = "default",
        include_values: bool = False,
        include_metadata: bool = True,
        exact: bool = False,
    ) -> SearchResult:
        """The images nearest to one of: words, an image (path, URL, bytes, open file or
        Pillow's), the id of an image that is in, a vector, or a mix of these. Nearest first.

        `terms`: `[{"id": "a.jpg"}, {"text": "at night", "weight": -0.5}]`; a weight is 1 unless
        it is given. `group_by` and `group_size`: at most so many of each label, or of each value
        of a field. `collapse`: leave out what is so near, as a cosine, to a match shown before.
        `exact`: compare with every image instead of asking the index, which is slow.
        docs/search.md has the rest.
        """
        asked = {"text": text, "image": image, "id": id, "vector": vector, "terms": terms}
        options = SearchOptions(
            top_k=top_k,
            offset=offset,
            filter=None if filter is None else dict(filter),
            min_score=min_score,
            group_by=group_by,
            group_size=group_size,
            collapse=collapse,
            namespace=namespace,
            include_values=include_values,
            include_metadata=include_metadata,
            exact=exact,
        )
        return self._do(searches.search(collection, asked, options))

    def search_many(
        self, queries: Iterable[Mapping[str, Any]], collection: str = "images"
    ) -> list[SearchResult | ProblemError]:
        """Answers in the order of the queries, each a mapping of arguments of `search`.

        A query that the service refuses has the error in the place of its answer. A request takes
        64 queries, and 64 images in all of them.
        """
        answers = [self._do(call) for call in searches.search_many(queries, collection)]
        return [outcome for some in answers for outcome in some]


class AsyncSearching(ABC):
    """The searches of `AsyncClient`."""

    @abstractmethod
    async def _do(self, call: Call[T]) -> T: ...

    async def search(
        self,
        collection: str = "images",
        *,
        text: str | None = None,
        image: AnImage | None = None,
        id: str | None = None,
        vector: Numbers | None = None,
        terms: Sequence[Mapping[str, Any]] | None = None,
        top_k: int = 10,
        offset: int = 0,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        collapse: float | None = None,
        namespace: str = "default",
        include_values: bool = False,
        include_metadata: bool = True,
        exact: bool = False,
    ) -> SearchResult:
        """The images nearest to one of: words, an image (path, URL, bytes, open file or
        Pillow's), the id of an image that is in, a vector, or a mix of these. Nearest first.

        `terms`: `[{"id": "a.jpg"}, {"text": "at night", "weight": -0.5}]`; a weight is 1 unless
        it is given. `group_by` and `group_size`: at most so many of each label, or of each value
        of a field. `collapse`: leave out what is so near, as a cosine, to a match shown before.
        `exact`: compare with every image instead of asking the index, which is slow.
        docs/search.md has the rest.
        """
        asked = {"text": text, "image": image, "id": id, "vector": vector, "terms": terms}
        options = SearchOptions(
            top_k=top_k,
            offset=offset,
            filter=None if filter is None else dict(filter),
            min_score=min_score,
            group_by=group_by,
            group_size=group_size,
            collapse=collapse,
            namespace=namespace,
            include_values=include_values,
            include_metadata=include_metadata,
            exact=exact,
        )
        return await self._do(searches.search(collection, asked, options))

    async def search_many(
        self, queries: Iterable[Mapping[str, Any]], collection: str = "images"
    ) -> list[SearchResult | ProblemError]:
        """Answers in the order of the queries, each a mapping of arguments of `search`.

        A query that the service refuses has the error in the place of its answer. A request takes
        64 queries, and 64 images in all of them.
        """
        answers = [await self._do(call) for call in searches.search_many(queries, collection)]
        return [outcome for some in answers for outcome in some]
