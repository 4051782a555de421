"""Images and files from the web. Stands in until the guarded fetcher is here: same signature."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Protocol, cast

import httpx

from clipfleet.common.errors import Unreadable

TIMEOUT_S = 30.0


class Fetches(Protocol):
    """Unreadable where the URL cannot be had; tries again by itself where that helps."""

    def get(self, url: str, limit_bytes: int) -> bytes:
        """The whole body, at most `limit_bytes`."""
        ...

    def open(self, url: str) -> AbstractContextManager[BinaryIO]:
        """The body as a stream, from its beginning; it cannot seek."""
        ...


class Fetcher:
    def get(self, url: str, limit_bytes: int) -> bytes:
        with self.open(url) as body:
            data = body.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise Unreadable(f"there are more than {limit_bytes} bytes")
        return data

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        try:
            with httpx.stream("GET", url, timeout=TIMEOUT_S) as response:
                if not response.is_success:
                    raise Unreadable(f"the server answered {response.status_code}")
                yield cast("BinaryIO", Body(response.iter_bytes()))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreadable(f"it cannot be fetched: {error}") from error


class Body:
    """What arrives in pieces, read as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
