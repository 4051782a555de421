"""Decides when a request is sent again, and after how many seconds.

A request is sent again in three cases:

- The connection was refused or not established in time, so nothing was sent.
- The response has status 429 or 503, and a Retry-After of at most MAX_DELAY_S.
- The connection broke, and the request changes nothing more when it is carried out twice.

A request that times out is not sent again.
"""

from collections.abc import Iterator

import httpx

from clipfleet.common.http.retry_after import retry_after_s

FIRST_DELAY_S = 0.1  # doubled at each further attempt
MAX_DELAY_S = 30.0  # after a longer Retry-After the error is raised
FIRST_POLL_S = 0.05  # because a small job ends soon

Outcome = httpx.Response | httpx.RequestError

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)


def retry_delay_s(outcome: Outcome, attempt: int, *, repeatable: bool) -> float | None:
    """Seconds to wait before the next attempt. None if there is to be none.

    Args:
        outcome: the response, or the error in its place.
        attempt: 0 for the first.
        repeatable: the request changes nothing more when it is carried out twice.
    """
    if isinstance(outcome, httpx.Response):
        return _retry_after_s(outcome)
    if isinstance(outcome, _UNSENT) or (repeatable and isinstance(outcome, _BROKEN)):
        return min(FIRST_DELAY_S * float(2**attempt), MAX_DELAY_S)
    return None


def poll_intervals_s(every_s: float) -> Iterator[float]:
    """Seconds between two looks at a job: short at first, then `every_s`."""
    pause = min(FIRST_POLL_S, every_s)
    while True:
        yield pause
        pause = min(1.5 * pause, every_s)


def _retry_after_s(response: httpx.Response) -> float | None:
    if response.status_code not in (429, 503):
        return None
    seconds = retry_after_s(response.headers.get("Retry-After", ""))
    return seconds if seconds is not None and seconds <= MAX_DELAY_S else None
