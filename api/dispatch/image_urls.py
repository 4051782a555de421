"""Images that a request names by URL."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from clipfleet.common.errors import Unavailable
from clipfleet.common.fetch import Fetcher
from clipfleet.common.settings import Settings


class RemoteImageLoader:
    """Fetched on threads of their own, so that slow servers hold up nothing else."""

    def __init__(self, settings: Settings) -> None:
        fetch = settings.fetch
        self._most_bytes = min(fetch.query_bytes, settings.limits.image_bytes)
        self._patience_s = 2 * fetch.query_s
        self._fetcher = Fetcher(fetch, total_s=fetch.query_s)
        self._threads = ThreadPoolExecutor(fetch.queries, "fetch")
        self._turns = asyncio.Semaphore(fetch.queries)

    @asynccontextmanager
    async def image(self, url: str) -> AsyncIterator[bytes]:
        """The bytes, for the length of the block: so few are in memory at once. Unreadable."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Unavailable("too many images are being fetched by URL just now") from error
        try:
            loop = asyncio.get_running_loop()
            yield await loop.run_in_executor(
                self._threads, self._fetcher.get, url, self._most_bytes
            )
        finally:
            self._turns.release()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._fetcher.close()
