"""How the gateway fetches images: few at once, each within a time limit."""

import asyncio
import threading

import pytest

from clipfleet.api.dispatch.image_urls import RemoteImageLoader
from clipfleet.api.http.bodies import MemoryBudget, reserving
from clipfleet.common.errors import Unavailable, Unreadable
from clipfleet.common.settings import Fetch, Limits, Settings
from support.fetching import LOOPBACK
from support.webserver import PageRequest, body, site


def settings(**fetch: float) -> Settings:
    options = {"allowed_networks": LOOPBACK, "backoff_s": 0.01, **fetch}
    return Settings(fetch=Fetch.model_validate(options), limits=Limits(image_bytes=1_000))


def test_who_finds_all_turns_taken_is_told_to_come_back_and_a_turn_comes_free_again() -> None:
    async def play(url: str) -> None:
        urls = RemoteImageLoader(settings(queries=1, query_s=1))
        async with urls.image(url) as first:
            assert first == b"x"
            with pytest.raises(Unavailable, match="all are taken"):
                async with urls.image(url):
                    pass
        with pytest.raises(Unreadable):
            async with urls.image("no url"):
                pass
        async with urls.image(url) as again:
            assert again == b"x"
        urls.close()

    with site({"/": body(b"x")}) as there:
        asyncio.run(play(f"{there.url}/"))


def test_the_event_loop_goes_on_while_a_server_is_slow() -> None:
    """The server answers only after the loop has run another task."""
    reached, went_on = threading.Event(), threading.Event()

    def slow(request: PageRequest) -> None:
        reached.set()
        assert went_on.wait(30)
        request.answer(b"x")

    async def meanwhile() -> None:
        while not reached.is_set():
            await asyncio.sleep(0.01)
        went_on.set()

    async def play(url: str) -> None:
        urls = RemoteImageLoader(settings(query_s=20))
        other = asyncio.create_task(meanwhile())
        async with urls.image(url) as data:
            assert data == b"x"
        await other
        urls.close()

    with site({"/": slow}) as there:
        asyncio.run(play(f"{there.url}/"))


def test_an_image_may_be_no_larger_than_any_image() -> None:
    async def play(url: str) -> None:
        urls = RemoteImageLoader(settings())
        with pytest.raises(Unreadable, match="the limit is 1000"):
            async with urls.image(url):
                pass
        urls.close()

    with site({"/": body(b"x" * 1_001)}) as there:
        asyncio.run(play(f"{there.url}/"))


def test_silent_servers_of_one_key_take_no_slot_from_another_key() -> None:
    """Not even when the requests of the first key are given up before their downloads end."""
    over, reached = threading.Event(), threading.Semaphore(0)

    def silent(_: PageRequest) -> None:
        reached.release()
        over.wait(30)

    async def load(key: str, url: str, urls: RemoteImageLoader) -> bytes:
        with reserving(MemoryBudget(1), key):
            async with urls.image(url) as data:
                return data

    async def play(url: str) -> None:
        urls = RemoteImageLoader(settings(queries=4, query_s=30))
        for _ in range(2):
            tasks = [asyncio.create_task(load("a", f"{url}/silent", urls)) for _ in range(8)]
            await asyncio.to_thread(reached.acquire, timeout=5)
            assert await load("b", f"{url}/", urls) == b"x"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert await load("b", f"{url}/", urls) == b"x"
        over.set()
        urls.close()

    with site({"/": body(b"x"), "/silent": silent}) as there:
        asyncio.run(play(there.url))
