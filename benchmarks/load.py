"""Measures text searches on a running service, from outside. It needs httpx alone.

    python benchmarks/load.py --collection photos --clients 64
    python benchmarks/load.py --collection photos --rate 200 --seconds 60 --json load.json

With --clients each client sends a query, waits for the answer and sends the next one (closed loop):
what does the service do at most? With --rate queries are sent at times that are fixed in advance,
however slow the answers are (open loop): how long does a user wait? The latency then counts from
the fixed time, so a service that stops for a second is not measured by the one query it stopped at.

Texts are built, each of them once, because workers remember the embeddings of texts; --queries
takes the lines of a file instead. An answer counts if its status is 200 and it has a match. The
exit code is 1 if no answer counts, or if an answer has no matches.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import re
import secrets
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

WORDS = ("red", "old", "small", "wooden", "broken", "shiny", "empty", "round", "tall", "quiet")
THINGS = ("church", "truck", "parachute", "golf ball", "chain saw", "horn", "dog", "fish", "pump")
PAUSE_S = 0.1  # of a client after an error, so that refusals are not asked for in a tight loop
STAGES = re.compile(r"([a-z]+);dur=([0-9.]+)")


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        due: when it had to be sent, seconds after the beginning of the load.
        sent: when it was sent.
        ended: when all of its answer had arrived, or the error.
        outcome: the HTTP status, or the name of the error without one.
        matches: the number of matches in the answer.
        truncated: whether the answer says that a limit cut it short.
        stages: the milliseconds of Server-Timing, by name.
    """

    due: float
    sent: float
    ended: float
    outcome: str
    matches: int = 0
    truncated: bool = False
    stages: tuple[tuple[str, float], ...] = ()

    @property
    def is_answer(self) -> bool:
        return self.outcome == "200" and self.matches > 0


class Load:
    """Sends searches and keeps a sample of each.

    Args:
        args: the command line.
        texts: the texts to search by.
    """

    def __init__(self, args: argparse.Namespace, texts: Iterator[str]) -> None:
        self._args, self._texts = args, texts
        self._path = f"/v1/collections/{quote(args.collection, safe='')}/search"
        self._tls = ssl.create_default_context()
        self._began = time.perf_counter()
        self.samples: list[Sample] = []

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def client(self, connections: int | None) -> httpx.AsyncClient:
        """An HTTP client with so many connections at most; None: without a limit."""
        return httpx.AsyncClient(
            base_url=self._args.url,
            headers={"Authorization": f"Bearer {self._args.key}"} if self._args.key else {},
            timeout=self._args.timeout,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=self._tls,
        )

    async def search(self, http: httpx.AsyncClient, due: float | None = None) -> Sample:
        """Search once.

        Args:
            http: the HTTP client.
            due: when the query had to be sent; None: now.
        """
        body = {"text": next(self._texts), "top_k": self._args.top_k}
        sent = self.now()
        fields: dict[str, Any] = {}
        try:
            answer = await http.post(self._path, json=body)
            outcome = str(answer.status_code)
            if answer.is_success:
                fields = _fields(answer)
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        except ValueError:
            outcome = "not JSON"
        sample = Sample(sent if due is None else due, sent, self.now(), outcome, **fields)
        self.samples.append(sample)
        return sample

    async def closed(self, until: float) -> None:
        """Search with `--clients` clients, each of which waits for its answer."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._args.clients):
                group.create_task(self._one_client(until))

    async def _one_client(self, until: float) -> None:
        async with self.client(1) as http:
            while self.now() < until:
                if (await self.search(http)).outcome != "200":
                    await asyncio.sleep(PAUSE_S)

    async def open(self, until: float) -> None:
        """Search at `--rate`, whether there are answers or not, and wait for all answers."""
        async with self.client(None) as http, asyncio.TaskGroup() as group:
            for number in itertools.count():
                due = number / self._args.rate
                if due >= until:
                    return
                await asyncio.sleep(max(0.0, due - self.now()))
                group.create_task(self.search(http, due))


def _fields(answer: httpx.Response) -> dict[str, Any]:
    document = answer.json()
    timing = STAGES.findall(answer.headers.get("Server-Timing", ""))
    return {
        "matches": len(document["matches"]),
        "truncated": document.get("truncated") is not None,
        "stages": tuple((name, float(milliseconds)) for name, milliseconds in timing),
    }


def distinct_texts() -> Iterator[str]:
    """Texts that no other run has, each of them once."""
    run = secrets.token_hex(3)
    for number in itertools.count():
        word, thing = WORDS[number % len(WORDS)], THINGS[number % len(THINGS)]
        yield f"a photo of a {word} {thing} with the number {number} of {run}"


def texts_of(file: Path) -> Iterator[str]:
    """The lines of a file, again and again."""
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        sys.exit(f"{file} has no texts: one a line")
    return itertools.cycle(lines)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the load and return the report."""
    load = Load(args, texts_of(args.queries) if args.queries else distinct_texts())
    since, until = args.warmup, args.warmup + args.seconds
    used = time.process_time()
    await (load.open(until) if args.rate else load.closed(until))
    used = (time.process_time() - used) / load.now()
    loop = {"rate": args.rate} if args.rate else {"clients": args.clients}
    return {
        "loop": "open" if args.rate else "closed",
        **loop,
        "seconds": args.seconds,
        "warmup_s": args.warmup,
        **report(load.samples, since, until),
        "client_cores": round(used, 2),
    }


def report(samples: Sequence[Sample], since: float, until: float) -> dict[str, Any]:
    """Describe the requests that were due from `since` to `until`, in seconds.

    The latencies are those of answers. Answers a second are those that arrived in this time, also
    to requests from before.
    """
    measured = [sample for sample in samples if since <= sample.due < until]
    answers = [sample for sample in measured if sample.is_answer]
    arrived = sum(sample.is_answer and since <= sample.ended < until for sample in samples)
    stages: dict[str, list[float]] = {}
    for sample in answers:
        for name, milliseconds in sample.stages:
            stages.setdefault(name, []).append(milliseconds)
    return {
        "requests": len(measured),
        "answers": len(answers),
        "matches": sum(sample.matches for sample in answers),
        "without_matches": sum(s.outcome == "200" and not s.matches for s in measured),
        "truncated": sum(sample.truncated for sample in answers),
        "errors": dict(Counter(s.outcome for s in measured if s.outcome != "200")),
        "answers_per_s": round(arrived / (until - since), 2),
        "latency_ms": percentiles([1e3 * (s.ended - s.due) for s in answers]),
        "server_ms": {name: percentiles(values) for name, values in stages.items()},
        "sent_late_ms": percentiles([1e3 * (s.sent - s.due) for s in measured]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th, 90th and 99th percentile (nearest rank) and the largest of the values."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in (50, 90, 99)}
    return {name: round(value, 3) for name, value in {**ranks, "max": ordered[-1]}.items()}


def show(result: dict[str, Any]) -> None:
    """Print the report for people."""
    load = f"{result['rate']:g}/s" if "rate" in result else f"{result['clients']} clients"
    print(f"{result['loop']} loop, {load}, {result['seconds']:g} s")
    print(f"  {result['requests']} requests, {result['answers']} answers with matches", end="")
    print(f" ({result['matches']} matches), {result['answers_per_s']:g} a second")
    for name in ("without_matches", "truncated"):
        if result[name]:
            print(f"  {result[name]} answers {name.replace('_', ' ')}")
    for outcome, count in result["errors"].items():
        print(f"  {count} times {outcome}")
    for name, values in {"latency": result["latency_ms"], **result["server_ms"]}.items():
        shown = "  ".join(f"{rank} {value:9.2f}" for rank, value in values.items())
        print(f"  {name:8} ms  {shown}")
    print(f"  this client used {result['client_cores']:g} cores", end="")
    late = result["sent_late_ms"].get("p99", 0.0)
    print(f" and sent 99 % of the queries within {late:.1f} ms" if "rate" in result else "")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    url = os.environ.get("CLIPFLEET_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=url, help="address of the service")
    parser.add_argument("--key", default=os.environ.get("CLIPFLEET_API_KEY", ""), help="API key")
    parser.add_argument("--collection", default="images", help="collection to search")
    parser.add_argument("--queries", type=Path, help="file with a text a line")
    parser.add_argument("--top-k", type=int, default=10, help="matches of each search")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--clients", type=_count, default=16, help="closed loop: clients at once")
    loop.add_argument("--rate", type=_positive, help="open loop: queries a second")
    parser.add_argument("--seconds", type=_positive, default=20.0, help="seconds that are measured")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before, not measured")
    parser.add_argument("--timeout", type=_positive, default=60.0, help="seconds for one step")
    parser.add_argument("--json", type=Path, help="file for the report")
    return parser.parse_args(words)


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise ValueError
    return value


def _count(text: str) -> int:
    if not (value := int(text)) > 0:
        raise ValueError
    return value


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show the report, and return the exit code."""
    args = arguments(words)
    result = asyncio.run(measure(args))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if not result["answers"]:
        print("nothing was measured: no answer has matches", file=sys.stderr)
    elif result["without_matches"]:
        print("some answers have no matches", file=sys.stderr)
    return 0 if result["answers"] and not result["without_matches"] else 1


if __name__ == "__main__":
    sys.exit(main())
