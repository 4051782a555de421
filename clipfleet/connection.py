"""How `Client` talks to the service: one request, repeated where that is safe."""

import os
import time
from itertools import count
from typing import Any, Self, TypeVar

import httpx

from clipfleet.calls import Call
from clipfleet.options import DEFAULT_URL, configured
from clipfleet.retries import Outcome, pause_s

T = TypeVar("T")


class Connection:
    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        self.url = url or os.environ.get("CLIPFLEET_URL") or DEFAULT_URL
        self._http = httpx.Client(**configured(self.url, api_key, timeout_s))
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _do(self, call: Call[T]) -> T:
        for attempt in count():
            outcome = self._send(call)
            pause = pause_s(outcome, attempt, repeatable=call.repeatable)
            if pause is None or attempt >= self._retries:
                break
            time.sleep(pause)
        return call.result(outcome, self.url)

    def _send(self, call: Call[Any]) -> Outcome:
        try:
            return self._http.request(call.method, call.path, **call.options())
        except httpx.RequestError as error:
            return error
        finally:
            call.close()
