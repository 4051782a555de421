"""The client: every method sends one request, unless it says otherwise.

    with Client() as client:
        client.index("photos", wait=True, progress=True)
        for match in client.search(text="a dog in the snow").matches:
            print(match.score, match.id)

Errors are those of `clipfleet.errors`. `AsyncClient` is the same, awaited.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import httpx

from clipfleet import calls
from clipfleet.calls import Call, OnExisting
from clipfleet.common.http.schemas import FieldType, JobState, Metric
from clipfleet.errors import JobFailed, NotFound, ProblemError, Unreachable
from clipfleet.guess import AnySource
from clipfleet.managing import Managing
from clipfleet.options import DEFAULT_URL, PAGE, PATIENCE_S, configured, require_wait
from clipfleet.payloads import AnImage, Files
from clipfleet.progress import Listener, Progress, listening
from clipfleet.results import ENDED, Collection, Failure, Failures, Image, Job
from clipfleet.retries import Outcome, looks_s, pause_s
from clipfleet.searching import Searching

T = TypeVar("T")


class Client(Managing, Searching):
    """`url` and `api_key` come from CLIPFLEET_URL and CLIPFLEET_API_KEY when they are not given.

    `retries`: how often a request is sent again, where `clipfleet.retries` finds it safe.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        self.url = url or os.environ.get("CLIPFLEET_URL") or DEFAULT_URL
        self._http = httpx.Client(**configured(self.url, api_key, timeout_s))
        self._retries = retries

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def collections(self) -> list[Collection]:
        return self._do(calls.collections())

    def collection(self, name: str) -> Collection:
        return self._do(calls.collection(name))

    def create_collection(
        self,
        name: str,
        *,
        metric: Metric = "cosine",
        model: str | None = None,
        dim: int | None = None,
        fields: Mapping[str, FieldType] | None = None,
    ) -> Collection:
        """Make it, or make sure that it is as described."""
        return self._do(calls.create_collection(name, metric, model, dim, fields))

    def delete_collection(self, name: str) -> None:
        self._do(calls.delete_collection(name))

    def index(
        self,
        source: AnySource,
        collection: str = "images",
        *,
        namespace: str = "default",
        label_from_folder: bool = False,
        on_existing: OnExisting = "skip",
        idempotency_key: str | None = None,
        wait: bool = False,
        progress: Progress = False,
        create: bool = True,
    ) -> Job:
        """Start a job on any source of docs/sources.md; images go in while you go on.

        `create`: make the collection when there is none. `wait` and `progress`: see `wait()`.
        `idempotency_key`: the same one again within a day gives the job that it made.
        """
        require_wait(wait, progress)
        call = calls.index(
            source, collection, namespace, label_from_folder, on_existing, idempotency_key
        )
        return self._start(call, collection, wait, progress, create)

    def upload(
        self,
        files: Files,
        collection: str = "images",
        *,
        namespace: str = "default",
        label: str = "",
        on_existing: OnExisting = "skip",
        idempotency_key: str | None = None,
        wait: bool = False,
        progress: Progress = False,
        create: bool = True,
    ) -> Job:
        """Start a job on files of this machine, sent piece by piece; their names become ids."""
        require_wait(wait, progress)
        call = calls.upload(files, collection, namespace, label, on_existing, idempotency_key)
        return self._start(call, collection, wait, progress, create)

    def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        *,
        collection: str | None = None,
        state: JobState | Sequence[JobState] | None = None,
    ) -> list[Job]:
        """Newest first; of one collection, in one or several states, or all."""
        return self._do(calls.jobs(limit, offset, collection, state))

    def job(self, job: Job | str) -> Job:
        """A job as it is now, by its id or by an earlier state of it."""
        return self._do(calls.job(job))

    def cancel(self, job: Job | str) -> Job:
        """Stop a job; what is in stays in."""
        return self._do(calls.cancel(job))

    def retry(self, job: Job | str, *, wait: bool = False, progress: Progress = False) -> Job:
        """Start a job on the failures of one that has ended. `wait` and `progress`: see `wait()`.

        While such a retry goes on already, that one.
        """
        require_wait(wait, progress)
        retry = self._do(calls.retry(job))
        return self.wait(retry, progress=progress) if wait else retry

    def delete_job(self, job: Job | str) -> None:
        """Forget it with its failures and uploads. One that runs is cancelled; what is in stays."""
        self._do(calls.delete_job(job))

    def wait(self, job: Job | str, *, progress: Progress = False, every_s: float = 0.3) -> Job:
        """The job once it has ended. Raises `JobFailed` when it failed as a whole.

        `progress`: True shows a bar, a function is called with every state. A service that is
        away for less than a minute is waited for: its job goes on.
        """
        with listening(progress) as tell:
            ended = self._ended(job, tell, every_s)
        if ended.state == "failed":
            raise JobFailed(ended)
        return ended

    def failures(self, job: Job | str, limit: int = 100, offset: int = 0) -> Failures:
        """A page of the images that failed, with reasons, and how many there are in all."""
        return self._do(calls.failures(job, limit, offset))

    def iter_failures(self, job: Job | str) -> Iterator[Failure]:
        """All images that failed, page by page as you go."""
        for offset in count(0, PAGE):
            page = self.failures(job, PAGE, offset).failures
            yield from page
            if len(page) < PAGE:
                return

    def upsert(
        self,
        vectors: Iterable[Mapping[str, Any]],
        collection: str = "images",
        *,
        namespace: str = "default",
    ) -> int:
        """Bring your own embeddings: `{"id", "values", "label"?, "metadata"?, "uri"?}` each.

        How many were written. A request takes 1,000; when one is refused, those before it are in.
        """
        return sum(self._do(call) for call in calls.upsert(vectors, collection, namespace))

    def image(
        self,
        id: str,
        collection: str = "images",
        *,
        namespace: str = "default",
        include_values: bool = False,
    ) -> Image:
        return self._do(calls.image(id, collection, namespace, include_values))

    def delete_image(
        self, id: str, collection: str = "images", *, namespace: str = "default"
    ) -> None:
        """Remove it from the collection. The file is not touched."""
        self._do(calls.delete_image(id, collection, namespace))

    def thumbnail(
        self, id: str, collection: str = "images", *, namespace: str = "default"
    ) -> bytes:
        """A small image file."""
        return self._do(calls.thumbnail(id, collection, namespace))

    def embed(
        self,
        texts: Sequence[str] | None = None,
        images: Sequence[AnImage] | None = None,
        *,
        model: str | None = None,
    ) -> list[list[float]]:
        """An embedding for each text, or for each image, in their order."""
        answers = [self._do(call) for call in calls.embed(texts, images, model)]
        return [embedding for some in answers for embedding in some]

    def _start(
        self, call: Call[Job], collection: str, wait: bool, progress: Progress, create: bool
    ) -> Job:
        if create:
            try:
                self.collection(collection)
            except NotFound:
                self.create_collection(collection)
        job = self._do(call)
        return self.wait(job, progress=progress) if wait else job

    def _ended(self, job: Job | str, tell: Listener, every_s: float) -> Job:
        seen_at, pauses = time.monotonic(), looks_s(every_s)
        while True:
            try:
                now = self.job(job)
            except (Unreachable, ProblemError) as error:
                if not calls.is_away(error) or time.monotonic() - seen_at > PATIENCE_S:
                    raise
            else:
                seen_at = time.monotonic()
                tell(now)
                if now.state in ENDED:
                    return now
            time.sleep(next(pauses))

    def _do(self, call: Call[T]) -> T:
        for attempt in count():
            outcome = self._send(call)
            pause = pause_s(outcome, attempt, repeatable=call.repeatable)
            if pause is None or attempt >= self._retries:
                break
            time.sleep(pause)
        return call.result(outcome, self.url)

    def _send(self, call: Call[Any]) -> Outcome:
        try:
            return self._http.request(call.method, call.path, **call.options())
        except httpx.RequestError as error:
            return error
        finally:
            call.close()
