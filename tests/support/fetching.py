"""A fetcher that may fetch from 127.0.0.1, and what it says when it will not."""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import pytest

from clipfleet.common.fetch import Fetcher, Unreadable
from clipfleet.common.fetch.network import LookUp, look_up
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
    given = {"allowed_networks": LOOPBACK, "backoff_s": 0.01, **settings}
    made = Fetcher(Fetch.model_validate(given), sleep=sleep, look_up=look_up, tls=tls)
    try:
        yield made
    finally:
        made.close()


def refusal(url: str, limit: int = LIMIT, **settings: Any) -> str:
    with fetcher(**settings) as fetch, pytest.raises(Unreadable) as caught:
        fetch.get(url, limit)
    return str(caught.value)
