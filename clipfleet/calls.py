"""What every method of the clients sends, and how its answer is read. No input or output here,
so that `Client` and `AsyncClient` share it."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from clipfleet import payloads
from clipfleet.common.http.schemas import (
    CollectionIn,
    CollectionList,
    FieldType,
    JobIn,
    JobList,
    JobState,
    Metric,
    Upserted,
    VectorIn,
    VectorsIn,
)
from clipfleet.errors import ProblemError, Unreachable, problem_of
from clipfleet.guess import AnySource, source_of
from clipfleet.payloads import AnImage, Files, Part, StoredFile
from clipfleet.results import Collection, Failures, Image, Job
from clipfleet.retries import Outcome

T = TypeVar("T")

OnExisting = Literal["skip", "replace"]
VECTORS, VECTORS_BYTES = 1_000, 16_000_000  # in one request
EMBEDDED, EMBEDDED_BYTES = 64, 3_000_000  # texts or images in one request


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. `repeatable`: carried out twice it changes no more than once."""

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, Any] | None = None
    json: Any = None
    form: Mapping[str, Any] | None = None
    files: Sequence[Part] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    timeout_s: float | None = None  # the client's own

    def options(self) -> dict[str, Any]:
        """The arguments of httpx's `request`, after method and path."""
        patience = {} if self.timeout_s is None else {"timeout": self.timeout_s}
        return {
            **patience,
            "params": self.params,
            "json": self.json,
            "data": self.form,
            "files": self.files,
            "headers": self.headers,
        }

    def result(self, outcome: Outcome, url: str) -> T:
        if isinstance(outcome, httpx.RequestError):
            said = str(outcome) or type(outcome).__name__
            raise Unreachable(f"no clipfleet answers at {url} ({said})") from outcome
        if not outcome.is_success:
            raise problem_of(outcome)
        try:
            return self.read(outcome.content)
        except ValidationError as error:
            what = f"{self.method} {self.path} got an answer of another kind"
            raise Unreachable(f"no clipfleet of this version answers at {url}: {what}") from error

    def close(self) -> None:
        """A broken upload may leave a file open."""
        for _, (_, file, _) in self.files or ():
            if isinstance(file, StoredFile):
                file.close()


class _Embeddings(BaseModel):
    embeddings: list[list[float]]


def collections() -> Call[list[Collection]]:
    return Call("GET", "/v1/collections", lambda body: _read(CollectionList)(body).collections)


def collection(name: str) -> Call[Collection]:
    return Call("GET", _path("collections", name), _read(Collection))


def create_collection(
    name: str,
    metric: Metric,
    model: str | None,
    dim: int | None,
    fields: Mapping[str, FieldType] | None,
) -> Call[Collection]:
    body = CollectionIn(metric=metric, model=model, dim=dim, fields=dict(fields or {}))
    return Call("PUT", _path("collections", name), _read(Collection), json=body.model_dump())


def delete_collection(name: str) -> Call[None]:
    return Call("DELETE", _path("collections", name), _nothing, repeatable=False)


def index(
    source: AnySource,
    collection: str,
    namespace: str,
    label_from_folder: bool,
    on_existing: OnExisting,
    idempotency_key: str | None,
) -> Call[Job]:
    body = JobIn(
        source=source_of(source, label_from_folder=label_from_folder),
        namespace=namespace,
        on_existing=on_existing,
    )
    where = _path("collections", collection, "jobs")
    return Call("POST", where, _read(Job), json=body.model_dump(), headers=_key(idempotency_key))


def _key(given: str | None = None) -> dict[str, str]:
    """It makes the service start one job, however often it is told to."""
    return {"Idempotency-Key": secrets.token_hex(16) if given is None else given}


def upload(
    files: Files,
    collection: str,
    namespace: str,
    label: str,
    on_existing: OnExisting,
    idempotency_key: str | None,
) -> Call[Job]:
    return Call(
        "POST",
        _path("collections", collection, "images"),
        _read(Job),
        form={"namespace": namespace, "label": label, "on_existing": on_existing},
        files=payloads.file_parts(files),
        headers=_key(idempotency_key),
    )


def jobs(
    limit: int, offset: int, collection: str | None, state: JobState | Sequence[JobState] | None
) -> Call[list[Job]]:
    states = [state] if isinstance(state, str) else list(state or ())
    asked = {"limit": limit, "offset": offset, "collection": collection or "", "state": states}
    return Call("GET", "/v1/jobs", lambda body: _read(JobList)(body).jobs, params=asked)


def job(job: Job | str) -> Call[Job]:
    return Call("GET", _path("jobs", job_id(job)), _read(Job))


def cancel(job: Job | str) -> Call[Job]:
    return Call("POST", _path("jobs", job_id(job), "cancel"), _read(Job))


def retry(job: Job | str) -> Call[Job]:
    return Call("POST", _path("jobs", job_id(job), "retry"), _read(Job), headers=_key())


def delete_job(job: Job | str) -> Call[None]:
    return Call("DELETE", _path("jobs", job_id(job)), _nothing, repeatable=False)


def failures(job: Job | str, limit: int, offset: int) -> Call[Failures]:
    page = {"limit": limit, "offset": offset}
    return Call("GET", _path("jobs", job_id(job), "failures"), _read(Failures), params=page)


def upsert(
    vectors: Iterable[Mapping[str, Any]], collection: str, namespace: str
) -> Iterator[Call[int]]:
    where = _path("collections", collection, "vectors")
    plain = (payloads.vector(one) for one in vectors)
    for some in payloads.pieces(plain, VECTORS, payloads.json_bytes, VECTORS_BYTES):
        items = [VectorIn.model_validate(one) for one in some]
        body = VectorsIn(vectors=items, namespace=namespace).model_dump()
        yield Call("POST", where, lambda body: _read(Upserted)(body).upserted, json=body)


def image(id: str, collection: str, namespace: str, include_values: bool) -> Call[Image]:
    which = {"id": id, "namespace": namespace, "include_values": include_values}
    return Call("GET", _path("collections", collection, "images"), _read(Image), params=which)


def delete_image(id: str, collection: str, namespace: str) -> Call[None]:
    which = {"id": id, "namespace": namespace}
    where = _path("collections", collection, "images")
    return Call("DELETE", where, _nothing, params=which, repeatable=False)


def thumbnail(id: str, collection: str, namespace: str) -> Call[bytes]:
    which = {"id": id, "namespace": namespace}
    return Call("GET", _path("collections", collection, "thumbnail"), bytes, params=which)


def embed(
    texts: Sequence[str] | None, images: Sequence[AnImage] | None, model: str | None
) -> Iterator[Call[list[list[float]]]]:
    """Checked before the first of them is sent; images are read as their turn comes."""
    if (texts is None) == (images is None):
        raise ValueError("give either texts= or images=")
    if isinstance(texts, str):
        raise ValueError("texts= is a list of texts")
    return _embed("texts", texts, model) if texts is not None else _embed("images", images, model)


def _embed(what: str, items: Any, model: str | None) -> Iterator[Call[list[list[float]]]]:
    plain = items if what == "texts" else (payloads.image(one) for one in items)
    for some in payloads.pieces(plain, EMBEDDED, payloads.json_bytes, EMBEDDED_BYTES):
        body = {what: some} if model is None else {what: some, "model": model}
        yield Call("POST", "/v1/embed", lambda body: _read(_Embeddings)(body).embeddings, json=body)


def job_id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def is_away(error: ProblemError | Unreachable) -> bool:
    """Whether a service that said this may well be back in a moment."""
    return isinstance(error, Unreachable) or error.status == 503


M = TypeVar("M", bound=BaseModel)


def _read(model: type[M]) -> Callable[[bytes], M]:
    return model.model_validate_json


def _nothing(_: bytes) -> None:
    return None


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
