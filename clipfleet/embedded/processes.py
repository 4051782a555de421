"""Command lines of the parts of clipfleet: gateway, planner, worker and Flower."""

import sys
from collections.abc import Sequence

from clipfleet.common.http.fleet import Lane
from clipfleet.common.queue.messages import queue_name


def gateway(host: str, port: int) -> list[str]:
    """The command line of a gateway. At SIGTERM it finishes requests, but no event streams."""
    asgi = ["uvicorn", "--factory", "clipfleet.api.app:create_app", "--log-level", "warning"]
    asgi += ["--http", "clipfleet.api.http.connections:Protocol"]
    end = ["--timeout-graceful-shutdown", "3"]
    return [sys.executable, "-m", *asgi, *end, "--host", host, "--port", str(port)]


def planner() -> list[str]:
    """The command line of a planner."""
    return [sys.executable, "-m", "clipfleet.workers.planner"]


def worker(name: str, lanes: Sequence[Lane], model: str, *, task_events: bool = False) -> list[str]:
    """The command line of a worker.

    Args:
        name: unique on this host. Flower and the logs show it.
        lanes: the lanes that the worker serves.
        model: the model of the worker's queues.
        task_events: send task events from the start. Otherwise Flower can switch them on.
    """
    queues = ",".join(queue_name(lane, model) for lane in lanes)
    celery = ["celery", "-q", "-A", "clipfleet.workers.app"]  # -q: no banner in the log
    celery += ["worker", "-Q", queues, "-n", f"{name}@%h"]
    # A start is 1 s faster without these, which are not used.
    quick = ["--without-mingle", "--without-gossip"]
    events = ["-E"] if task_events else []
    return [sys.executable, "-m", *celery, "--loglevel", "WARNING", *quick, *events]


def flower(host: str, port: int) -> list[str]:
    """The command line of Flower.

    It has no password, so it is read-only. The address and the password of Redis are in the
    environment, not in the command line.
    """
    options = [f"--address={host}", f"--port={port}", "--read_only", "--purge_offline_workers=600"]
    return [sys.executable, "-m", "celery", "-A", "clipfleet.workers.app", "flower", *options]
