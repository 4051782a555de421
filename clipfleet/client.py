"""A Python client for the HTTP interface. Needs httpx and pydantic only."""

import json
import mimetypes
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from clipfleet.common.schemas import (
    CollectionIn,
    CollectionList,
    CollectionOut,
    FailureList,
    FieldType,
    FolderSource,
    JobIn,
    JobList,
    JobOut,
    Metric,
    SearchOut,
)

T = TypeVar("T", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
PATIENCE_S = 60.0
ENDED = ("succeeded", "partial", "failed", "cancelled")


class ProblemError(Exception):
    """The service said no. `problem` is its RFC 9457 document."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status = status
        self.problem = problem


class Unreachable(Exception):
    """Nobody answers at the address."""


class Client:
    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 60.0
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def collections(self) -> list[CollectionOut]:
        return self._ask(CollectionList, "GET", "/v1/collections").collections

    def collection(self, name: str) -> CollectionOut:
        return self._ask(CollectionOut, "GET", _path("collections", name))

    def create_collection(
        self,
        name: str,
        *,
        metric: Metric = "cosine",
        model: str | None = None,
        dim: int | None = None,
        fields: Mapping[str, FieldType] | None = None,
    ) -> CollectionOut:
        """Make it, or make sure that it is as described."""
        body = CollectionIn(metric=metric, model=model, dim=dim, fields=dict(fields or {}))
        return self._ask(CollectionOut, "PUT", _path("collections", name), json=body.model_dump())

    def delete_collection(self, name: str) -> None:
        self._send("DELETE", _path("collections", name))

    def index_folder(
        self,
        collection: str,
        folder: str | Path,
        *,
        namespace: str = "default",
        label_from_folder: bool = False,
        on_existing: Literal["skip", "replace"] = "skip",
    ) -> JobOut:
        """Start a job on a folder that the service can read. Images go in while you go on."""
        source = FolderSource(path=str(folder), label_from_folder=label_from_folder)
        body = JobIn(source=source, namespace=namespace, on_existing=on_existing)
        return self._ask(
            JobOut, "POST", _path("collections", collection, "jobs"), json=body.model_dump()
        )

    def upload(
        self, collection: str, files: Sequence[str | Path], *, namespace: str = "default"
    ) -> JobOut:
        """Start a job on files of this machine; their names become the ids."""
        with ExitStack() as stack:
            parts = [("files", _part(stack, Path(file))) for file in files]
            form = {"namespace": namespace}
            where = _path("collections", collection, "images")
            return self._ask(JobOut, "POST", where, files=parts, data=form)

    def jobs(self, limit: int = 50) -> list[JobOut]:
        return self._ask(JobList, "GET", "/v1/jobs", params={"limit": limit}).jobs

    def job(self, job_id: str) -> JobOut:
        return self._ask(JobOut, "GET", _path("jobs", job_id))

    def cancel(self, job_id: str) -> JobOut:
        return self._ask(JobOut, "POST", _path("jobs", job_id, "cancel"))

    def failures(self, job_id: str, limit: int = 100, offset: int = 0) -> FailureList:
        page = {"limit": limit, "offset": offset}
        return self._ask(FailureList, "GET", _path("jobs", job_id, "failures"), params=page)

    def wait(
        self, job_id: str, progress: Callable[[JobOut], None] | None = None, every_s: float = 0.3
    ) -> JobOut:
        """The job once it has ended. `progress` hears of it meanwhile.

        A service that is away for less than PATIENCE_S is waited for: its job goes on.
        """
        seen_at = time.monotonic()
        while True:
            try:
                job = self.job(job_id)
            except (Unreachable, ProblemError) as error:
                passing = isinstance(error, Unreachable) or error.status == 503
                if not passing or time.monotonic() - seen_at > PATIENCE_S:
                    raise
            else:
                seen_at = time.monotonic()
                if progress:
                    progress(job)
                if job.state in ENDED:
                    return job
            time.sleep(every_s)

    def search(self, collection: str, **query: Any) -> SearchOut:
        """One of text=, id=, vector=, and the options of `POST …/search`."""
        return self._ask(SearchOut, "POST", _path("collections", collection, "search"), json=query)

    def search_image(self, collection: str, image: str | Path, **options: Any) -> SearchOut:
        """By an image of this machine."""
        if isinstance(options.get("filter"), Mapping):
            options["filter"] = json.dumps(options["filter"])
        with ExitStack() as stack:
            part = {"file": _part(stack, Path(image))}
            where = _path("collections", collection, "search", "image")
            return self._ask(SearchOut, "POST", where, files=part, data=options)

    def _ask(self, kind: type[T], method: str, path: str, **how: Any) -> T:
        return kind.model_validate_json(self._send(method, path, **how).content)

    def _send(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **how)
        except httpx.TransportError as error:
            raise Unreachable(f"no clipfleet answers at {self._url} ({error})") from error
        if response.is_success:
            return response
        raise ProblemError(response.status_code, _problem(response))


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _part(stack: ExitStack, path: Path) -> tuple[str, Any, str]:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return path.name, stack.enter_context(path.open("rb")), kind


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        return problem
    return {"status": response.status_code, "detail": response.text[:300]}
