"""Downloads the images that a request names by URL."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from clipfleet.api.dispatch.slots import SharedSlots
from clipfleet.common.fetch import Fetcher
from clipfleet.common.settings import Settings


class RemoteImageLoader:
    """Downloads images on its own threads, so that a slow server delays nothing else.

    Args:
        settings: the settings of the service.
    """

    def __init__(self, settings: Settings) -> None:
        fetch = settings.fetch
        self._max_bytes = min(fetch.query_bytes, settings.limits.image_bytes)
        self._slot_timeout_s = 2 * fetch.query_s
        self._fetcher = Fetcher(fetch, total_s=fetch.query_s)
        self._threads = ThreadPoolExecutor(fetch.queries, "fetch")
        self._slots = SharedSlots(
            fetch.queries, "images that requests name by URL", "CLIPFLEET_FETCH__QUERIES"
        )

    @asynccontextmanager
    async def image(self, url: str) -> AsyncIterator[bytes]:
        """Download an image and hold a slot for the length of the block, which bounds the memory.

        Raises:
            Unreadable: the image cannot be downloaded.
            Unavailable: no slot is free in time.
            RateLimited: the key of the current request has its share of the slots.
        """
        async with self._slots.turn(self._slot_timeout_s) as slot:
            yield await slot.call(self._threads, self._fetcher.get, url, self._max_bytes)

    def close(self) -> None:
        """Close the connections and end the threads without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._fetcher.close()
