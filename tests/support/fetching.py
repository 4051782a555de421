"""A fetcher that may fetch from 127.0.0.1, and the messages of its errors."""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import pytest

from clipfleet.common.fetch import Fetcher, Unreadable
from clipfleet.common.fetch.look_ups import LookUp, look_up
from clipfleet.common.settings import Fetch

LIMIT = 100_000
LOOPBACK = (ip_network("127.0.0.1/32"),)


@contextmanager
def fetcher(
    *,
    sleep: Callable[[float], None] = time.sleep,
    look_up: LookUp = look_up,
    tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> Iterator[Fetcher]:
    options = {"allowed_networks": LOOPBACK, "backoff_s": 0.01, **settings}
    fetch = Fetcher(Fetch.model_validate(options), sleep=sleep, look_up=look_up, tls=tls)
    try:
        yield fetch
    finally:
        fetch.close()


def refusal(url: str, limit: int = LIMIT, **settings: Any) -> str:
    with fetcher(**settings) as fetch, pytest.raises(Unreadable) as caught:
        fetch.get(url, limit)
    return str(caught.value)
