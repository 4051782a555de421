"""Details about a worker and its machine that help to find what is slow."""

from functools import cache
from importlib.metadata import version

from clipfleet._version import __version__
from clipfleet.common.process.machine import cores, gpus
from clipfleet.common.queue.fleet import WorkerInfo
from clipfleet.workers.metrics import WorkerMetrics


def worker_info(metrics: WorkerMetrics) -> WorkerInfo:
    """The details of a worker's card: versions, cores, GPUs, and its work since the start."""
    images, seconds = metrics.totals()
    concurrency = metrics.concurrency
    changing = {
        "feeders": concurrency.get("decode", 0),
        "concurrency": concurrency,
        "images": images,
        "spent": seconds,
    }
    return _machine().model_copy(update=changing)


@cache
def _machine() -> WorkerInfo:
    return WorkerInfo(version=__version__, torch=version("torch"), cores=cores(), gpus=gpus())
