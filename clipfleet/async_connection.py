"""As `clipfleet.connection`, awaited."""

import asyncio
import os
from itertools import count
from typing import Any, Self, TypeVar

import httpx

from clipfleet.calls import Call
from clipfleet.options import DEFAULT_URL, configured
from clipfleet.retries import Outcome, pause_s

T = TypeVar("T")


class AsyncConnection:
    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        self.url = url or os.environ.get("CLIPFLEET_URL") or DEFAULT_URL
        self._http = httpx.AsyncClient(**configured(self.url, api_key, timeout_s))
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _do(self, call: Call[T]) -> T:
        for attempt in count():
            outcome = await self._send(call)
            pause = pause_s(outcome, attempt, repeatable=call.repeatable)
            if pause is None or attempt >= self._retries:
                break
            await asyncio.sleep(pause)
        return call.result(outcome, self.url)

    async def _send(self, call: Call[Any]) -> Outcome:
        try:
            return await self._http.request(call.method, call.path, **call.options())
        except httpx.RequestError as error:
            return error
        finally:
            call.close()
