"""Details about a worker and its machine that help to find what is slow."""

import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

from clipfleet._version import __version__
from clipfleet.common.queue.fleet import WorkerInfo
from clipfleet.workers.metrics import WorkerMetrics


def worker_info(decode_threads: int, metrics: WorkerMetrics) -> WorkerInfo:
    """The details of a worker's card: versions, cores, GPUs, and its work since the start."""
    images, seconds = metrics.totals()
    return _machine().model_copy(
        update={"decode_threads": decode_threads, "images": images, "spent": seconds}
    )


@cache
def _machine() -> WorkerInfo:
    return WorkerInfo(version=__version__, torch=version("torch"), cores=cores(), gpus=gpus())


def cores() -> int:
    """The number of CPU cores that this process may use. A container's quota is not considered."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(devices: Path = Path("/dev")) -> int:
    """The number of NVIDIA GPUs that the driver shows, even if this torch cannot use them."""
    return len(list(devices.glob("nvidia[0-9]*")))
