"""Where the time of an answer went: the header `Server-Timing`.

A worker measures how long it works on a batch; the gateway measures how long it waits for the
answer. The difference is the queue: no clocks of two hosts are compared.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import Request, Response

Stage = Literal["queue", "embed", "search", "total"]

HEADER = "Server-Timing"
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            HEADER: {
                "description": "Milliseconds of each stage: queue, embed, search and total.",
                "schema": {
                    "type": "string",
                    "examples": [
                        "queue;dur=1.204, embed;dur=5.310, search;dur=3.071, total;dur=11.846"
                    ],
                },
            }
        }
    }
}


class Timing:
    """The time of one query or one request. It begins when it is created.

    Attributes:
        stages: the seconds of the stages; empty until an answer came, or if its worker is of an
            earlier release.
    """

    __slots__ = ("_began", "stages")

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.stages: Mapping[Stage, float] = {}

    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self._began

    def answered(self, waited_s: float, times: Sequence[int], *, searched: bool = True) -> None:
        """Set the stages.

        Args:
            waited_s: how long the gateway waited for the worker, seconds.
            times: the worker's times, see `BatchReply.times`.
            searched: whether there is a stage `search`.
        """
        if not times:
            return
        embed_s, search_s, work_s = (microseconds / 1e6 for microseconds in times[:3])
        stages: dict[Stage, float] = {"queue": max(0.0, waited_s - work_s), "embed": embed_s}
        self.stages = {**stages, "search": search_s} if searched else stages


def longest(timings: Sequence[Timing]) -> Mapping[Stage, float]:
    """Return the stages of the timing whose stages took longest together."""
    return max((timing.stages for timing in timings), key=lambda stages: sum(stages.values()))


def timed_response(content: bytes, timing: Timing, request: Request) -> Response:
    """Return a JSON response with the header.

    `AccessLogMiddleware` has noted when the request began, and counts the same numbers.

    Args:
        content: the JSON.
        timing: has the stages.
        request: the request, whose total ends now.
    """
    state = request.scope["state"]
    total_s = time.perf_counter() - state["began"]
    durations: dict[Stage, float] = {**timing.stages, "total": total_s}
    state["durations"] = durations
    header = ", ".join(f"{stage};dur={1e3 * s:.3f}" for stage, s in durations.items())
    return Response(content, media_type="application/json", headers={HEADER: header})
