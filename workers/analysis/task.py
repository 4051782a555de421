"""What a task over stored images implements, and what it gets."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.imaging.embedder import Embedder
from clipfleet.common.ledger import Job
from clipfleet.common.ledger.catalogue import Catalogue
from clipfleet.common.store import Record, Store

T = TypeVar("T")


class Lease(Protocol):
    """The lease of a claimed chunk, as `workers/ingest/lease.py` implements it."""

    def progress(self) -> None:
        """Record progress; raises Interrupted when the claim is lost."""
        ...

    def confirm(self) -> None:
        """Renew the claim at once; raises Interrupted when the claim is lost."""
        ...

    def retry_while_unavailable(self, call: Callable[[], T], waiting: Callable[[str], None]) -> T:
        """Call a service, and call it again while it raises Unavailable."""
        ...


@dataclass(frozen=True)
class Run:
    """What a task gets with a chunk.

    Attributes:
        job: the job.
        collection: the collection.
        lease: the lease of the chunk.
        store: has the images.
        catalogue: knows who writes which images.
        blobs: keeps results that are bigger than a row: `results_of(collection)` and
            `uploads_of(job.id)` are the prefixes of their keys.
        embedder: the model of this worker.
        stopping: set when the worker is asked to stop.
        metadata_bytes: the limit on the metadata of an image.
        waiting: shows why the job waits.
        weights_id: which weights the model has; "": not known.
        failures: takes the images that fail, by primary key, each with the reason.
    """

    job: Job
    collection: Collection
    lease: Lease
    store: Store
    catalogue: Catalogue
    blobs: Blobs
    embedder: Embedder
    stopping: threading.Event
    metadata_bytes: int
    waiting: Callable[[str], None]
    weights_id: str = ""
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the task."""
        parameters: Mapping[str, Any] = self.job.new.source["parameters"]
        return parameters

    def patiently(self, call: Callable[[], T]) -> T:
        """Call the store, the catalogue or the blobs, and wait while they are unavailable.

        Raises:
            Interrupted: the claim is lost, or the worker stops: let it pass, and the chunk is
                handed back.
        """
        return self.lease.retry_while_unavailable(call, self.waiting)


class Task(Protocol):
    """Computes on the embeddings of stored images, chunk by chunk.

    `common/ledger/stored_images.py` (`TASKS`) says how many images a chunk has, and whether the
    task has a finishing step. `workers/analysis/tasks.py` lists the implementations. An instance
    serves many chunks, also of several jobs at once: what it keeps is a cache.

    A chunk may run twice, whole or in parts, on two workers: when its worker dies, or when its
    lease expires. So each step is idempotent, and a result that is written twice is the same.
    Results by chunk have the primary keys of their images as names, not the name of the chunk.

    The finishing step runs once in effect. The planner holds back the last image of the job until
    all other chunks are marked, and plans it as a chunk of its own; the worker that has it works on
    the image, then calls `finish`, and then marks the chunk. A worker that dies in between leaves
    the chunk to another one. So `finish` sees what all `work` has written; it writes its result in
    one step, such as one blob that names the others. A finishing step that fails too often leaves
    the last image as a failure of the job, whose state is then "partial". The job of a collection
    without images ends without a finishing step.

    Raises of both methods:
        CollectionGone: the collection was deleted; the job is cancelled.
        Unavailable: a service is away; the chunk is handed back. `Run.patiently` waits instead.
        Refused: the job cannot be done; it is cancelled with this reason.
        Exception: the chunk is tried again, then split, until the image that does it is alone.
    """

    def work(self, run: Run, rows: Sequence[Record]) -> int:
        """Work on the images of a chunk. Long work calls `run.lease.progress()` now and then.

        Args:
            run: what the task needs.
            rows: the images with their embeddings, in the order of their primary keys. Images that
                were deleted since the chunk was planned are left out.

        Returns:
            How many images changed. Others count as skipped, and those in `run.failures` as failed.
        """
        ...

    def finish(self, run: Run) -> None:
        """Compute what needs all images. It calls `run.lease.progress()` every few seconds."""
        ...


class Refused(Exception):
    """The job cannot be done; the text is the reason, for its caller."""
