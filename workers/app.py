"""The Celery worker: `celery -A clipfleet.workers.app worker [-Q ingest.MODEL,query.MODEL]`.

Configured by the environment (`CLIPFLEET_*`). Without -Q it serves both lanes of its model. A task
is one call: parse the message, hand it on. Where Celery's ways end and ours begin is this file.
"""

import logging
import os
import sys
import warnings
from typing import Any, NoReturn

from celery.exceptions import CPendingDeprecationWarning
from celery.signals import (
    setup_logging,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from kombu import Exchange, Queue

from clipfleet.common.errors import StartupError
from clipfleet.common.http.fleet import LANES, Lane
from clipfleet.common.imaging.embedder import HASH_MODEL, Embedder, HashEmbedder
from clipfleet.common.process.checks import blob_checks, service_checks
from clipfleet.common.process.logs import configure_logs
from clipfleet.common.process.metrics import make_registry, serve_metrics
from clipfleet.common.process.startup import begin_checks
from clipfleet.common.queue.broker import make_celery
from clipfleet.common.queue.messages import IngestNudge, QueryBatch, queue_name
from clipfleet.common.settings import Settings
from clipfleet.workers.metrics import WorkerMetrics
from clipfleet.workers.runtime import Runtime

log = logging.getLogger(__name__)

settings = Settings()
app = make_celery(settings)
# Threads answer pings while busy; solo does not, and prefork breaks CUDA and gRPC.
app.conf.worker_pool = "clipfleet.workers.queue.pool:TaskPool"
app.conf.worker_consumer = "clipfleet.workers.queue.consumer:Consumer"
app.conf.task_queues = [
    Queue(name, Exchange(name, type="direct"), routing_key=name)
    for name in (queue_name(lane, settings.model) for lane in LANES)
]

_runtime: list[Runtime] = []


def runtime() -> Runtime:
    return _runtime[0]


@app.task(name=IngestNudge.task)
def ingest(raw: str) -> str:  # noqa: ARG001  # a nudge of any release says the same
    return runtime().ingest()


@app.task(name=QueryBatch.task)
def query(raw: str) -> None:
    runtime().query(raw)


@setup_logging.connect
def _logs(**_: Any) -> None:
    configure_logs(settings.log, "worker")


@worker_init.connect
def _load(**_: Any) -> None:
    """The model is loaded and warm before the first message is taken.

    Celery swallows exceptions here, and a worker without a model would eat its queue.
    """
    begin_checks("worker", service_checks(settings))
    metrics = WorkerMetrics(make_registry())
    try:
        serve_metrics(settings, metrics.registry, _trouble)
        embedder = _make_embedder()
        _runtime.append(Runtime(settings, app, embedder, metrics))
    except StartupError as error:
        _end(error.detail)
    except Exception as error:
        log.exception("the worker cannot start")
        _end(f"the model {settings.model!r} cannot be used: {error}")
    log.info("model %s on %s, %d dimensions", settings.model, embedder.device, embedder.dim)


def _make_embedder() -> Embedder:
    """StartupError says what to do."""
    if settings.model.startswith(HASH_MODEL):
        return HashEmbedder.named(settings.model, settings.embed_batch)
    from clipfleet.workers.embedding.clip import ClipEmbedder  # torch takes seconds to import

    return ClipEmbedder(settings)


def _trouble() -> str:
    return runtime().trouble() if _runtime else "the model is being loaded"


def _end(why: str) -> NoReturn:
    """One line, and the exit code for what another start would not mend (EX_CONFIG)."""
    sys.stderr.write(f"clipfleet worker: {why}\n")
    raise SystemExit(os.EX_CONFIG)


@worker_ready.connect
def _ready(sender: Any, **_: Any) -> None:
    # At each reconnection Celery tells that a setting, which is set, will have another default.
    warnings.filterwarnings("ignore", r"\s*In Celery 5.1", CPendingDeprecationWarning)
    consumed = {queue.name for queue in sender.task_consumer.queues}
    lanes: tuple[Lane, ...] = tuple(
        lane for lane in LANES if queue_name(lane, settings.model) in consumed
    )
    if len(lanes) != len(consumed):
        expected = ", ".join(queue_name(lane, settings.model) for lane in LANES)
        _end(
            f"asked to serve {', '.join(sorted(consumed))}, but with "
            f"CLIPFLEET_MODEL={settings.model} it can serve only {expected}"
        )
    if settings.model.startswith(HASH_MODEL):
        log.warning("the model %s gives embeddings without a meaning", settings.model)
    if "ingest" in lanes:  # queries need no blobs
        begin_checks("worker", blob_checks(settings))
    runtime().serve(lanes)


@worker_shutting_down.connect
def _stopping(**_: Any) -> None:
    """The chunk in hand is handed back at the next batch of images."""
    if _runtime:
        runtime().stopping.set()


@worker_shutdown.connect
def _leave(**_: Any) -> None:
    if _runtime:
        runtime().shutdown()
