"""What a worker says of its machine and of itself, for those who look for what is slow."""

import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

from clipfleet._version import __version__
from clipfleet.common.queue.fleet import WorkerInfo
from clipfleet.workers.metrics import WorkerMetrics


def about_worker(decode_threads: int, metrics: WorkerMetrics) -> WorkerInfo:
    images, spent = metrics.totals()
    return _machine().model_copy(
        update={"decode_threads": decode_threads, "images": images, "spent": spent}
    )


@cache
def _machine() -> WorkerInfo:
    return WorkerInfo(version=__version__, torch=version("torch"), cores=cores(), gpus=gpus())


def cores() -> int:
    """That this process may use; not what a container's quota leaves of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(devices: Path = Path("/dev")) -> int:
    """NVIDIA's, as the driver shows them: also when this torch cannot use them."""
    return len(list(devices.glob("nvidia[0-9]*")))
