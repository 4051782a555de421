"""Measures how long each part takes from its start until it is ready, and its memory then.

    python benchmarks/startup.py [--rounds 3] [--model clipfleet-mini]

The parts start one after the other, with a real Valkey and milvus-lite. A first start, which is not
counted, converts the model for OpenVINO and fills the caches of the system. A worker and a planner
are ready when they announce themselves, a gateway when `/healthz` answers. Processor time and
memory are those of the part and its children.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import redis
from parts import environment, process, until

from clipfleet.common.queue.fleet import RedisFleet
from clipfleet.common.settings import CARRIED_MODEL
from clipfleet.embedded import commands, processes

Measured = tuple[float, float, float]  # seconds, seconds of processors, MB


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default=CARRIED_MODEL)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        env = environment(running, folder, args.model)
        fleet = RedisFleet(redis.Redis.from_url(env["CLIPFLEET_REDIS_URL"]))
        until(lambda: fleet.alive() == [])
        port = commands.free_port()
        url = f"http://{commands.LOOPBACK}:{port}/healthz"
        parts: dict[str, tuple[Sequence[str], Callable[[], object]]] = {
            "gateway": (processes.gateway(commands.LOOPBACK, port), lambda: httpx.get(url)),
            "planner": (processes.planner(), fleet.planners),
            "ingest worker": (processes.worker("i", ["ingest"], args.model), fleet.alive),
            "query worker": (processes.worker("q", ["query"], args.model), fleet.alive),
        }
        for name, (command, is_ready) in parts.items():
            rounds = [measured(command, is_ready, folder, env) for _ in range(1 + args.rounds)]
            print(f"{name}: {described(rounds[1:])}, load {os.getloadavg()[0]:.1f}", flush=True)


def measured(
    command: Sequence[str], is_ready: Callable[[], object], folder: Path, env: Mapping[str, str]
) -> Measured:
    until(lambda: not _answers(is_ready))
    began = time.monotonic()
    with process(command, folder / "part.log", **env) as part:
        until(lambda: _answers(is_ready))
        seconds = time.monotonic() - began
        family = [part, *part.children(recursive=True)]
        spent = sum(sum(member.cpu_times()[:2]) for member in family)
        memory = sum(member.memory_info().rss for member in family) / 1e6
    return seconds, spent, memory


def _answers(is_ready: Callable[[], object]) -> bool:
    try:
        return bool(is_ready())
    except httpx.TransportError:
        return False


def described(rounds: Sequence[Measured]) -> str:
    columns = zip(("s", "s of processors", "MB"), zip(*rounds, strict=True), strict=True)
    return ", ".join(
        f"{statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"
        for unit, values in columns
    )


if __name__ == "__main__":
    main()
