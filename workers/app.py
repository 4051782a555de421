"""The Celery worker: `celery -A clipfleet.workers.app worker [-Q ingest.MODEL,query.MODEL]`.

The environment (`CLIPFLEET_*`) configures the worker. Without -Q it serves both lanes of its model.
This file holds Celery's tasks and signal handlers, which call the `Runtime`.
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
from clipfleet.common.imaging.embedder import HASH_MODEL
from clipfleet.common.process.checks import blob_checks, service_checks
from clipfleet.common.process.logs import configure_logs
from clipfleet.common.process.metrics import make_registry, serve_metrics
from clipfleet.common.process.startup import begin_checks
from clipfleet.common.queue.broker import make_celery
from clipfleet.common.queue.messages import IngestNudge, QueryBatch, queue_name
from clipfleet.common.settings import Settings
from clipfleet.workers.embedding.load import load_embedder
from clipfleet.workers.metrics import WorkerMetrics
from clipfleet.workers.runtime import CHUNKS_IN_HAND, Runtime

log = logging.getLogger(__name__)

settings = Settings()
app = make_celery(settings)
# The thread pool answers pings while busy. The solo pool does not; prefork breaks CUDA and gRPC.
app.conf.worker_pool = "clipfleet.workers.queue.pool:TaskPool"
app.conf.worker_concurrency = CHUNKS_IN_HAND  # and two batches of queries: `QueryParts.model`
app.conf.worker_consumer = "clipfleet.workers.queue.consumer:Consumer"
app.events.dispatcher_cls = "clipfleet.workers.queue.consumer:Dispatcher"
app.conf.task_queues = [
    Queue(name, Exchange(name, type="direct"), routing_key=name)
    for name in (queue_name(lane, settings.model) for lane in LANES)
]

_runtime: list[Runtime] = []


def runtime() -> Runtime:
    """The runtime of this process; exists once the model is loaded."""
    return _runtime[0]


@app.task(name=IngestNudge.task)
def ingest(raw: str) -> str:  # noqa: ARG001  # a nudge has no content, in any release
    """Work on the next chunk."""
    return runtime().ingest()


@app.task(name=QueryBatch.task)
def query(raw: str) -> None:
    """Answer a batch of queries."""
    runtime().query(raw)


@setup_logging.connect
def _configure_logs(**_: Any) -> None:
    configure_logs(settings.log, "worker")


@worker_init.connect
def _load_model(**_: Any) -> None:
    """Load and warm up the model before Celery takes the first message.

    Celery ignores exceptions in this handler, so errors end the process: a worker without a model
    would take messages and fail them all.
    """
    begin_checks("worker", service_checks(settings))
    metrics = WorkerMetrics(make_registry())
    try:
        serve_metrics(settings, metrics.registry, _trouble)
        embedder = load_embedder(settings)
        _runtime.append(Runtime(settings, app, embedder, metrics))
    except StartupError as error:
        _exit_unusable(error.detail)
    except Exception as error:
        log.exception("the worker cannot start")
        _exit_unusable(f"the model {settings.model!r} cannot be used: {error}")
    log.info("model %s on %s, %d dimensions", settings.model, embedder.device, embedder.dim)


def _trouble() -> str:
    return runtime().trouble() if _runtime else "the model is being loaded"


def _exit_unusable(reason: str) -> NoReturn:
    """Exit with EX_CONFIG, which tells a supervisor that a restart does not help."""
    sys.stderr.write(f"clipfleet worker: {reason}\n")
    raise SystemExit(os.EX_CONFIG)


@worker_ready.connect
def _serve(sender: Any, **_: Any) -> None:
    # Celery warns at each reconnection about the future default of a setting that is set here.
    warnings.filterwarnings("ignore", r"\s*In Celery 5.1", CPendingDeprecationWarning)
    consumed = {queue.name for queue in sender.task_consumer.queues}
    lanes: tuple[Lane, ...] = tuple(
        lane for lane in LANES if queue_name(lane, settings.model) in consumed
    )
    if len(lanes) != len(consumed):
        expected = ", ".join(queue_name(lane, settings.model) for lane in LANES)
        _exit_unusable(
            f"the worker cannot serve {', '.join(sorted(consumed))}: with "
            f"CLIPFLEET_MODEL={settings.model} it serves only {expected}"
        )
    if settings.model.startswith(HASH_MODEL):
        log.warning("the embeddings of model %s have no meaning; use it for tests", settings.model)
    if "ingest" in lanes:  # queries do not read blobs
        begin_checks("worker", blob_checks(settings))
    try:
        runtime().serve(lanes)
    except StartupError as error:
        _exit_unusable(error.detail)


@worker_shutting_down.connect
def _stop_taking_work(**_: Any) -> None:
    """Ask the runtime to stop: it hands its chunk back at the next batch of images."""
    if _runtime:
        runtime().stopping.set()


@worker_shutdown.connect
def _shut_down(**_: Any) -> None:
    if _runtime:
        runtime().shutdown()
