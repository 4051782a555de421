"""When a request is sent again, and after how long.

Only where that is safe: nothing was sent (the connection was refused), the service said when to
come back (503 or 429 with Retry-After), or the connection broke under a request that changes
nothing when it is carried out twice. A service that is merely slow is not asked again.
"""

from collections.abc import Iterator

import httpx

from clipfleet.common.http.retry_after import retry_after_s

FIRST_S = 0.1  # doubled at every further try
LONGEST_S = 30.0  # a service that wants to be left alone for longer is not waited for
FIRST_LOOK_S = 0.05  # a small job ends in a moment

Outcome = httpx.Response | httpx.RequestError

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)


def pause_s(outcome: Outcome, attempt: int, *, repeatable: bool) -> float | None:
    """Seconds to wait before the next try; None when there shall be none. `attempt` is from 0."""
    if isinstance(outcome, httpx.Response):
        return _asked_for(outcome)
    if isinstance(outcome, _UNSENT) or (repeatable and isinstance(outcome, _BROKEN)):
        return min(FIRST_S * float(2**attempt), LONGEST_S)
    return None


def looks_s(every_s: float) -> Iterator[float]:
    """Seconds between looks at a job: short at first, then `every_s`."""
    pause = min(FIRST_LOOK_S, every_s)
    while True:
        yield pause
        pause = min(1.5 * pause, every_s)


def _asked_for(response: httpx.Response) -> float | None:
    if response.status_code not in (429, 503):
        return None
    seconds = retry_after_s(response.headers.get("Retry-After", ""))
    return seconds if seconds is not None and seconds <= LONGEST_S else None
