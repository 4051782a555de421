"""The command line of each of our processes: what `clipfleet up` starts, and `clipfleet worker`."""

import sys
from collections.abc import Sequence

from clipfleet.common.messages import Lane, queue_name


def gateway(host: str, port: int) -> list[str]:
    """Told to end, it waits for answers under way, but not for those who follow jobs' events."""
    asgi = ["uvicorn", "--factory", "clipfleet.api.app:create_app", "--log-level", "warning"]
    end = ["--timeout-graceful-shutdown", "3"]
    return [sys.executable, "-m", *asgi, *end, "--host", host, "--port", str(port)]


def planner() -> list[str]:
    return [sys.executable, "-m", "clipfleet.workers.planner"]


def worker(name: str, lanes: Sequence[Lane], model: str) -> list[str]:
    """`name`: which no other worker of this host has; Flower and the logs show it."""
    queues = ",".join(queue_name(lane, model) for lane in lanes)
    celery = ["celery", "-q", "-A", "clipfleet.workers.app"]  # -q: no banner among the logs
    celery += ["worker", "-Q", queues, "-n", f"{name}@%h"]
    quick = ["--without-mingle", "--without-gossip"]  # a second at start, for nothing we use
    return [sys.executable, "-m", *celery, "--loglevel", "WARNING", *quick]
