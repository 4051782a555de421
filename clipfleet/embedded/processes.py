"""The command line of each of our processes: what `clipfleet up` starts, and `clipfleet worker`."""

import sys
from collections.abc import Sequence

from clipfleet.common.http.fleet import Lane
from clipfleet.common.queue.messages import queue_name


def gateway(host: str, port: int) -> list[str]:
    """Told to end, it waits for answers under way, but not for those who follow jobs' events."""
    asgi = ["uvicorn", "--factory", "clipfleet.api.app:create_app", "--log-level", "warning"]
    asgi += ["--http", "clipfleet.api.http.connections:Protocol"]
    end = ["--timeout-graceful-shutdown", "3"]
    return [sys.executable, "-m", *asgi, *end, "--host", host, "--port", str(port)]


def planner() -> list[str]:
    return [sys.executable, "-m", "clipfleet.workers.planner"]


def worker(name: str, lanes: Sequence[Lane], model: str, *, task_events: bool = False) -> list[str]:
    """`name`: which no other worker of this host has; Flower and the logs show it. `task_events`:
    from the start; without, they cost nothing until a Flower switches them on."""
    queues = ",".join(queue_name(lane, model) for lane in lanes)
    celery = ["celery", "-q", "-A", "clipfleet.workers.app"]  # -q: no banner among the logs
    celery += ["worker", "-Q", queues, "-n", f"{name}@%h"]
    quick = ["--without-mingle", "--without-gossip"]  # a second at start, for nothing we use
    events = ["-E"] if task_events else []
    return [sys.executable, "-m", *celery, "--loglevel", "WARNING", *quick, *events]


def flower(host: str, port: int) -> list[str]:
    """It asks nobody for a password, so it may watch and do nothing else. Where Redis is, and its
    password, stand in the environment, not here."""
    told = [f"--address={host}", f"--port={port}", "--read_only", "--purge_offline_workers=600"]
    return [sys.executable, "-m", "celery", "-A", "clipfleet.workers.app", "flower", *told]
