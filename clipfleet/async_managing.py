"""As `clipfleet.managing`, awaited. Files are written and read in place: a part of one takes a
moment."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import httpx

from clipfleet import calls, managing_calls
from clipfleet.calls import Call
from clipfleet.errors import ProblemError, Unreachable
from clipfleet.exported import Exported, is_whole, new_file
from clipfleet.managing_calls import AnyFilter
from clipfleet.options import PATIENCE_S
from clipfleet.results import Collection, Fleet, Recall

T = TypeVar("T")


class AsyncManaging(ABC):
    url: str
    _http: httpx.AsyncClient

    @abstractmethod
    async def _do(self, call: Call[T]) -> T: ...

    async def fleet(self) -> Fleet:
        """The workers and planners that are alive, and what can be seen to be wrong."""
        return await self._do(managing_calls.fleet())

    async def count(
        self, collection: str = "images", *, filter: AnyFilter = None, namespace: str = "default"
    ) -> int:
        """How many images of a namespace pass the filter."""
        return await self._do(managing_calls.count(collection, filter, namespace))

    async def iter_ids(
        self, collection: str = "images", *, namespace: str = "default"
    ) -> AsyncIterator[str]:
        """The ids of all images of a namespace, page by page as you go, in no order of yours."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self._do(managing_calls.ids(collection, cursor, namespace))
            for one in page.ids:
                yield one
            cursor = page.next

    async def delete(
        self,
        collection: str = "images",
        *,
        filter: AnyFilter = None,
        namespace: str = "default",
        all: bool = False,
    ) -> int:
        """Remove the images of a namespace that pass the filter, or all of them. How many.

        Asks as often as it takes: each time the service works for some seconds. The collection
        itself stays, and so do the files.
        """
        deleted, more = 0, True
        while more:
            some = await self._do(managing_calls.delete(collection, filter, namespace, all))
            deleted, more = deleted + some.deleted, some.more
        return deleted

    async def recall(
        self,
        collection: str = "images",
        *,
        k: int = 10,
        sample: int = 100,
        filter: AnyFilter = None,
        namespace: str = "default",
        seed: int = 0,
    ) -> Recall:
        """Of the k images nearest to each of a sample, which share the index finds."""
        return await self._do(managing_calls.recall(collection, k, sample, filter, namespace, seed))

    async def export_collection(
        self,
        name: str,
        file: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        """Write it to a Parquet file, which is there once it is complete. Its path.

        `progress` is told how many bytes there are.
        """
        call = managing_calls.export(name)
        with new_file(file, overwrite) as out:
            try:
                async with self._http.stream(call.method, call.path) as response:
                    if not response.is_success:
                        await response.aread()
                        call.result(response, self.url)
                    async for part in response.aiter_bytes():
                        out.write(part)
                        if progress:
                            progress(out.tell())
            except httpx.RequestError as error:
                raise Unreachable(f"the export from {self.url} broke off ({error})") from error
            if not is_whole(out):
                raise Unreachable(f"the export from {self.url} broke off")
        return Path(file).expanduser()

    async def import_collection(
        self,
        file: str | Path,
        name: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Collection:
        """Write an exported file into a collection, made as the file says if there is none.

        Refused when there is one with another metric, model, dimension or fields. Images with an
        id that is there already are overwritten. `progress` is told how many are in, and of how
        many. Needs pyarrow.
        """
        exported = Exported(file)
        about = exported.about
        into = name or about.name
        await self._do(
            calls.create_collection(into, about.metric, about.model, about.dim, about.fields)
        )
        done = 0
        for namespace, vectors in exported.pieces():
            for call in calls.upsert(vectors, into, namespace):
                done += await self._patiently(call)
            if progress:
                progress(done, exported.rows)
        return await self._do(calls.collection(into))

    async def _patiently(self, call: Call[T]) -> T:
        """A service that is away for less than a minute is waited for."""
        began = time.monotonic()
        while True:
            try:
                return await self._do(call)
            except (Unreachable, ProblemError) as error:
                if not calls.is_away(error) or time.monotonic() - began > PATIENCE_S:
                    raise
            await asyncio.sleep(1.0)
