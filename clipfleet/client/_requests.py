"""The request that each method of the clients sends, and how its response is read.

Nothing is sent here, so `Client` and `AsyncClient` share it.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from clipfleet.client import payloads
from clipfleet.client._retries import Outcome
from clipfleet.client.payloads import Files, ImageInput, Part, StoredFile
from clipfleet.client.source_detection import AnySource, source_of
from clipfleet.common.http.collections import (
    Count,
    DeletedSome,
    DeleteIn,
    IdPage,
    RecallIn,
    RecallOut,
    Which,
)
from clipfleet.common.http.fleet import FleetOut
from clipfleet.common.http.schemas import (
    CollectionIn,
    CollectionList,
    FieldType,
    JobIn,
    JobList,
    JobState,
    Metric,
    SearchOptions,
    Upserted,
    VectorIn,
    VectorsIn,
)
from clipfleet.common.http.search import BATCH, Refused, SearchBatchOut, SearchIn
from clipfleet.errors import ProblemError, Unreachable, problem_error, problem_of
from clipfleet.results import Collection, Failures, Image, Job, SearchResult

T = TypeVar("T")

OnExisting = Literal["skip", "replace"]
VECTORS, VECTORS_BYTES = 1_000, 16_000_000  # in one request
EMBEDDED, EMBEDDED_BYTES = 64, 3_000_000  # texts or images in one request
SEARCH_BATCH_BYTES = 3_000_000  # of queries in one request
IDS = 10_000  # in one page
RECALL_TIMEOUT_S = 120.0
AnyFilter = Mapping[str, Any] | None
SearchOutcomes = list[SearchResult | ProblemError]


@dataclass(frozen=True)
class ApiRequest(Generic[T]):
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
            reason = str(outcome) or type(outcome).__name__
            raise Unreachable(f"no clipfleet answers at {url} ({reason})") from outcome
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


def collections() -> ApiRequest[list[Collection]]:
    return ApiRequest(
        "GET", "/v1/collections", lambda body: _read(CollectionList)(body).collections
    )


def collection(name: str) -> ApiRequest[Collection]:
    return ApiRequest("GET", _path("collections", name), _read(Collection))


def create_collection(
    name: str,
    metric: Metric,
    model: str | None,
    dim: int | None,
    fields: Mapping[str, FieldType] | None,
) -> ApiRequest[Collection]:
    body = CollectionIn(metric=metric, model=model, dim=dim, fields=dict(fields or {}))
    return ApiRequest("PUT", _path("collections", name), _read(Collection), json=body.model_dump())


def delete_collection(name: str) -> ApiRequest[None]:
    return ApiRequest("DELETE", _path("collections", name), _nothing, repeatable=False)


def index(
    collection: str,
    source: AnySource,
    namespace: str,
    label_from_folder: bool,
    on_existing: OnExisting,
    idempotency_key: str | None,
) -> ApiRequest[Job]:
    body = JobIn(
        source=source_of(source, label_from_folder=label_from_folder),
        namespace=namespace,
        on_existing=on_existing,
    )
    where = _path("collections", collection, "jobs")
    return ApiRequest(
        "POST", where, _read(Job), json=body.model_dump(), headers=_key(idempotency_key)
    )


def _key(key: str | None = None) -> dict[str, str]:
    """The service starts one job, however often it gets the same key."""
    return {"Idempotency-Key": secrets.token_hex(16) if key is None else key}


def upload(
    collection: str,
    files: Files,
    namespace: str,
    label: str,
    on_existing: OnExisting,
    idempotency_key: str | None,
) -> ApiRequest[Job]:
    return ApiRequest(
        "POST",
        _path("collections", collection, "images"),
        _read(Job),
        form={"namespace": namespace, "label": label, "on_existing": on_existing},
        files=payloads.file_parts(files),
        headers=_key(idempotency_key),
    )


def jobs(
    limit: int, offset: int, collection: str | None, state: JobState | Sequence[JobState] | None
) -> ApiRequest[list[Job]]:
    states = [state] if isinstance(state, str) else list(state or ())
    params = {"limit": limit, "offset": offset, "collection": collection or "", "state": states}
    return ApiRequest("GET", "/v1/jobs", lambda body: _read(JobList)(body).jobs, params=params)


def job(job: Job | str) -> ApiRequest[Job]:
    return ApiRequest("GET", _path("jobs", job_id(job)), _read(Job))


def cancel(job: Job | str) -> ApiRequest[Job]:
    return ApiRequest("POST", _path("jobs", job_id(job), "cancel"), _read(Job))


def retry(job: Job | str) -> ApiRequest[Job]:
    return ApiRequest("POST", _path("jobs", job_id(job), "retry"), _read(Job), headers=_key())


def delete_job(job: Job | str) -> ApiRequest[None]:
    return ApiRequest("DELETE", _path("jobs", job_id(job)), _nothing, repeatable=False)


def failures(job: Job | str, limit: int, offset: int) -> ApiRequest[Failures]:
    page = {"limit": limit, "offset": offset}
    return ApiRequest("GET", _path("jobs", job_id(job), "failures"), _read(Failures), params=page)


def upsert(
    collection: str, vectors: Iterable[Mapping[str, Any]], namespace: str
) -> Iterator[ApiRequest[int]]:
    where = _path("collections", collection, "vectors")
    rows = (payloads.vector(vector) for vector in vectors)
    for batch in payloads.pieces(rows, VECTORS, payloads.json_bytes, VECTORS_BYTES):
        items = [VectorIn.model_validate(row) for row in batch]
        body = VectorsIn(vectors=items, namespace=namespace).model_dump()
        yield ApiRequest("POST", where, lambda body: _read(Upserted)(body).upserted, json=body)


def image(collection: str, id: str, namespace: str, include_values: bool) -> ApiRequest[Image]:
    which = {"id": id, "namespace": namespace, "include_values": include_values}
    return ApiRequest("GET", _path("collections", collection, "images"), _read(Image), params=which)


def delete_image(collection: str, id: str, namespace: str) -> ApiRequest[None]:
    which = {"id": id, "namespace": namespace}
    where = _path("collections", collection, "images")
    return ApiRequest("DELETE", where, _nothing, params=which, repeatable=False)


def thumbnail(collection: str, id: str, namespace: str) -> ApiRequest[bytes]:
    which = {"id": id, "namespace": namespace}
    return ApiRequest("GET", _path("collections", collection, "thumbnail"), bytes, params=which)


def embed(
    texts: Sequence[str] | None, images: Sequence[ImageInput] | None, model: str | None
) -> Iterator[ApiRequest[list[list[float]]]]:
    """Checked before the first of them is sent; images are read as their turn comes."""
    if (texts is None) == (images is None):
        raise ValueError("give either texts= or images=")
    if isinstance(texts, str):
        raise ValueError("texts= is a list of texts")
    return _embed("texts", texts, model) if texts is not None else _embed("images", images, model)


def _embed(what: str, items: Any, model: str | None) -> Iterator[ApiRequest[list[list[float]]]]:
    plain = items if what == "texts" else (payloads.image(item) for item in items)
    for batch in payloads.pieces(plain, EMBEDDED, payloads.json_bytes, EMBEDDED_BYTES):
        body = {what: batch} if model is None else {what: batch, "model": model}
        yield ApiRequest(
            "POST", "/v1/embed", lambda body: _read(_Embeddings)(body).embeddings, json=body
        )


def count(collection: str, filter: AnyFilter, namespace: str) -> ApiRequest[int]:
    where = _path("collections", collection, "count")
    body = Which(filter=_plain_filter(filter), namespace=namespace).model_dump()
    return ApiRequest("POST", where, lambda body: _read(Count)(body).count, json=body)


def ids(collection: str, cursor: str, namespace: str) -> ApiRequest[IdPage]:
    params = {"cursor": cursor, "limit": IDS, "namespace": namespace}
    return ApiRequest("GET", _path("collections", collection, "ids"), _read(IdPage), params=params)


def delete(
    collection: str, filter: AnyFilter, namespace: str, all: bool
) -> ApiRequest[DeletedSome]:
    where = _path("collections", collection, "delete")
    body = DeleteIn(filter=_plain_filter(filter), namespace=namespace, all=all).model_dump()
    return ApiRequest("POST", where, _read(DeletedSome), json=body, repeatable=False)


def recall(
    collection: str, k: int, sample: int, filter: AnyFilter, namespace: str, seed: int
) -> ApiRequest[RecallOut]:
    where = _path("collections", collection, "recall")
    body = RecallIn(
        k=k, sample=sample, filter=_plain_filter(filter), namespace=namespace, seed=seed
    )
    return ApiRequest(
        "POST", where, _read(RecallOut), json=body.model_dump(), timeout_s=RECALL_TIMEOUT_S
    )


def fleet() -> ApiRequest[FleetOut]:
    return ApiRequest("GET", _path("fleet"), _read(FleetOut))


def export(collection: str) -> ApiRequest[None]:
    return ApiRequest("GET", _path("collections", collection, "export"), _nothing)


def _plain_filter(filter: AnyFilter) -> dict[str, Any] | None:
    return None if filter is None else dict(filter)


def search(
    collection: str, query: Mapping[str, Any], options: SearchOptions
) -> ApiRequest[SearchResult]:
    """ValueError unless exactly one of text, image, id, vector and terms is in `query`."""
    present = [name for name, value in query.items() if value is not None]
    if len(present) != 1:
        expected, got = ", ".join(f"{name}=" for name in query), ", ".join(present) or "none"
        raise ValueError(f"give exactly one of {expected} (given: {got})")
    image = query.get("image")
    if image is not None and not payloads.image_url(image):
        return _search_image(collection, payloads.image_bytes(image), options)
    where = _path("collections", collection, "search")
    body = _body({**query, **options.model_dump()})
    return ApiRequest("POST", where, _read(SearchResult), json=body)


def _search_image(
    collection: str, image: bytes, options: SearchOptions
) -> ApiRequest[SearchResult]:
    form = {name: value for name, value in options.model_dump().items() if value is not None}
    if "filter" in form:
        form["filter"] = json.dumps(form["filter"])
    where = _path("collections", collection, "search", "image")
    part = ("file", ("query", image, "application/octet-stream"))
    return ApiRequest("POST", where, _read(SearchResult), form=form, files=[part])


def search_many(
    collection: str, queries: Iterable[Mapping[str, Any]]
) -> Iterator[ApiRequest[SearchOutcomes]]:
    """As many requests as it takes; images are read as their turn comes."""
    where = _path("collections", collection, "search", "batch")
    bodies = (_body(query) for query in queries)
    for batch in payloads.pieces(bodies, BATCH, payloads.json_bytes, SEARCH_BATCH_BYTES):
        yield ApiRequest("POST", where, _outcomes, json={"queries": batch})


def _outcomes(body: bytes) -> SearchOutcomes:
    results = _read(SearchBatchOut)(body).results
    return [
        problem_error(result.problem.model_dump(exclude_none=True))
        if isinstance(result, Refused)
        else result
        for result in results
    ]


def _body(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query as JSON. ValidationError for one that cannot be right."""
    present = {name: value for name, value in query.items() if value is not None}
    terms = {"terms": [_plain(term) for term in present["terms"]]} if "terms" in present else {}
    return SearchIn.model_validate({**_plain(present), **terms}).model_dump(exclude_unset=True)


def _plain(term: Mapping[str, Any]) -> dict[str, Any]:
    """Images and arrays as JSON has them."""
    plain = dict(term)
    if plain.get("image") is not None:
        plain["image"] = payloads.image(plain["image"])
    if plain.get("vector") is not None:
        plain["vector"] = payloads.numbers(plain["vector"])
    return plain


def job_id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def is_outage(error: ProblemError | Unreachable) -> bool:
    """Whether the service may be back in a moment."""
    return isinstance(error, Unreachable) or error.status == 503


M = TypeVar("M", bound=BaseModel)


def _read(model: type[M]) -> Callable[[bytes], M]:
    return model.model_validate_json


def _nothing(_: bytes) -> None:
    return None


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
