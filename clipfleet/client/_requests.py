"""Builds the request of each method of the clients, and reads its response.

Sends nothing, so `Client` and `AsyncClient` share this module.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from clipfleet.client import payloads
from clipfleet.client._config import proxy_hint
from clipfleet.client._retries import Outcome
from clipfleet.client.payloads import Files, ImageInput, Part, StoredFile
from clipfleet.client.source_detection import AnySource, source_of
from clipfleet.common.collection import FieldType, Metric
from clipfleet.common.http.collections import (
    AliasIn,
    AliasList,
    Count,
    DeletedSome,
    DeleteIn,
    IdPage,
    RecallIn,
    RecallOut,
    RowPage,
    RowsIn,
    Which,
)
from clipfleet.common.http.fleet import FleetOut
from clipfleet.common.http.schemas import (
    CollectionIn,
    CollectionList,
    JobIn,
    JobList,
    JobState,
    SearchOptions,
    Upserted,
    VectorIn,
    VectorsIn,
)
from clipfleet.common.http.search import BATCH, Refused, SearchBatchOut, SearchIn
from clipfleet.errors import ProblemError, Unreachable, problem_error, problem_of
from clipfleet.results import Alias, Collection, Failures, Image, Job, SearchResult, Timing

T = TypeVar("T")

OnExisting = Literal["skip", "replace"]
MAX_VECTORS, MAX_VECTORS_BYTES = 1_000, 16_000_000  # in one request
MAX_EMBEDS, MAX_EMBEDS_BYTES = 64, 3_000_000  # texts or images in one request
MAX_SEARCH_BATCH_BYTES = 3_000_000  # of queries in one request
IDS_PER_PAGE = 10_000
STAGE = re.compile(r"(?:^|,)\s*(queue|embed|search|total)\s*;\s*dur=([0-9]+(?:\.[0-9]+)?)")
RECALL_TIMEOUT_S = 120.0
AnyFilter = Mapping[str, Any] | None
SearchOutcomes = list[SearchResult | ProblemError]


@dataclass(frozen=True)
class ApiRequest(Generic[T]):
    """One request of the HTTP API.

    Attributes:
        method: HTTP method.
        path: path with escaped parts.
        read: makes the result of a successful response's body.
        params: query parameters.
        json: JSON body.
        form: fields of a form.
        files: files of a form.
        headers: further headers.
        repeatable: the request changes nothing more when it is carried out twice.
        timeout_s: seconds. Default: the client's timeout.
        complete: adds to the result what the headers of the response say.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, Any] | None = None
    json: Any = None
    form: Mapping[str, Any] | None = None
    files: Sequence[Part] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    timeout_s: float | None = None
    complete: Callable[[T, httpx.Headers], T] | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments of httpx's `request`."""
        timeout = {} if self.timeout_s is None else {"timeout": self.timeout_s}
        return {
            **timeout,
            "params": self.params,
            "json": self.json,
            "data": self.form,
            "files": self.files,
            "headers": self.headers,
        }

    def result(self, outcome: Outcome, url: str) -> T:
        """The result in a response.

        Args:
            outcome: the response, or the error in its place.
            url: address of the service, for the message.

        Raises:
            Unreachable: there is no response, or one that is not clipfleet's.
            ProblemError: the service refused the request.
        """
        if isinstance(outcome, httpx.RequestError):
            reason = str(outcome) or type(outcome).__name__
            raise Unreachable(
                f"no clipfleet service answers at {url} ({reason}){proxy_hint(url)}"
            ) from outcome
        if not outcome.is_success:
            raise problem_of(outcome)
        try:
            result = self.read(outcome.content)
            return self.complete(result, outcome.headers) if self.complete else result
        except ValidationError as error:
            reason = f"the response to {self.method} {self.path} has another schema"
            raise Unreachable(f"no clipfleet of this version answers at {url}: {reason}") from error

    def close(self) -> None:
        """Close the files, one of which a broken upload may have left open."""
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


def aliases() -> ApiRequest[list[Alias]]:
    return ApiRequest("GET", "/v1/aliases", lambda body: _read(AliasList)(body).aliases)


def alias(name: str) -> ApiRequest[Alias]:
    return ApiRequest("GET", _path("aliases", name), _read(Alias))


def set_alias(name: str, collection: str) -> ApiRequest[Alias]:
    body = AliasIn(collection=collection).model_dump()
    return ApiRequest("PUT", _path("aliases", name), _read(Alias), json=body)


def delete_alias(name: str) -> ApiRequest[None]:
    return ApiRequest("DELETE", _path("aliases", name), _nothing, repeatable=False)


def index(
    collection: str,
    source: AnySource,
    namespace: str,
    label_from_folder: bool,
    on_existing: OnExisting,
    idempotency_key: str | None,
    exif: bool,
) -> ApiRequest[Job]:
    body = JobIn(
        source=source_of(source, label_from_folder=label_from_folder),
        namespace=namespace,
        on_existing=on_existing,
        exif=exif,
    )
    where = _path("collections", collection, "jobs")
    json = body.model_dump(exclude=set() if exif else {"exif"})  # which 0.1 does not know
    return ApiRequest("POST", where, _read(Job), json=json, headers=_key(idempotency_key))


def _key(key: str | None = None) -> dict[str, str]:
    """The header that makes a job request repeatable: the service starts one job per key."""
    return {"Idempotency-Key": secrets.token_hex(16) if key is None else key}


def upload(
    collection: str,
    files: Files,
    namespace: str,
    label: str,
    on_existing: OnExisting,
    idempotency_key: str | None,
    exif: bool,
    ids: Sequence[str] | None,
) -> ApiRequest[Job]:
    more = {"exif": "true"} if exif else {}
    return ApiRequest(
        "POST",
        _path("collections", collection, "images"),
        _read(Job),
        form={"namespace": namespace, "label": label, "on_existing": on_existing, **more},
        files=payloads.file_parts(files, ids),
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
    for batch in payloads.batches(rows, MAX_VECTORS, payloads.json_bytes, MAX_VECTORS_BYTES):
        items = [VectorIn.model_validate(row) for row in batch]
        body = VectorsIn(vectors=items, namespace=namespace).model_dump()
        yield ApiRequest("POST", where, lambda body: _read(Upserted)(body).upserted, json=body)


def image(collection: str, id: str, namespace: str, include_values: bool) -> ApiRequest[Image]:
    params = {"id": id, "namespace": namespace, "include_values": include_values}
    return ApiRequest(
        "GET", _path("collections", collection, "images"), _read(Image), params=params
    )


def delete_image(collection: str, id: str, namespace: str) -> ApiRequest[None]:
    params = {"id": id, "namespace": namespace}
    where = _path("collections", collection, "images")
    return ApiRequest("DELETE", where, _nothing, params=params, repeatable=False)


def thumbnail(collection: str, id: str, namespace: str) -> ApiRequest[bytes]:
    params = {"id": id, "namespace": namespace}
    return ApiRequest("GET", _path("collections", collection, "thumbnail"), bytes, params=params)


def embed(
    texts: Sequence[str] | None, images: Sequence[ImageInput] | None, model: str | None
) -> Iterator[ApiRequest[list[list[float]]]]:
    """Requests for batches. ValueError at the call; an image is read when its batch is built."""
    if (texts is None) == (images is None):
        raise ValueError("give exactly one of texts= and images=")
    if isinstance(texts, str):
        raise ValueError("texts= has to be a list of texts, not one text")
    return _embed("texts", texts, model) if texts is not None else _embed("images", images, model)


def _embed(what: str, items: Any, model: str | None) -> Iterator[ApiRequest[list[list[float]]]]:
    plain = items if what == "texts" else (payloads.image(item) for item in items)
    for batch in payloads.batches(plain, MAX_EMBEDS, payloads.json_bytes, MAX_EMBEDS_BYTES):
        body = {what: batch} if model is None else {what: batch, "model": model}
        yield ApiRequest(
            "POST", "/v1/embed", lambda body: _read(_Embeddings)(body).embeddings, json=body
        )


def count(collection: str, filter: AnyFilter, namespace: str) -> ApiRequest[int]:
    where = _path("collections", collection, "count")
    body = Which(filter=_plain_filter(filter), namespace=namespace).model_dump()
    return ApiRequest("POST", where, lambda body: _read(Count)(body).count, json=body)


def ids(collection: str, cursor: str, namespace: str) -> ApiRequest[IdPage]:
    params = {"cursor": cursor, "limit": IDS_PER_PAGE, "namespace": namespace}
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


def rows(collection: str, body: RowsIn) -> ApiRequest[RowPage]:
    where = _path("collections", collection, "rows")
    return ApiRequest("POST", where, _read(RowPage), json=body.model_dump())


def _plain_filter(filter: AnyFilter) -> dict[str, Any] | None:
    return None if filter is None else dict(filter)


def search(
    collection: str, query: Mapping[str, Any], options: SearchOptions
) -> ApiRequest[SearchResult]:
    """The request of one search. ValueError unless `query` has exactly one value."""
    present = [name for name, value in query.items() if value is not None]
    if len(present) != 1:
        expected, got = ", ".join(f"{name}=" for name in query), ", ".join(present) or "none"
        raise ValueError(f"give exactly one of {expected} (given: {got})")
    image = query.get("image")
    if image is not None and not payloads.image_url(image):
        return _search_image(collection, payloads.image_bytes(image), options)
    where = _path("collections", collection, "search")
    body = _body({**query, **options.model_dump()})
    return ApiRequest("POST", where, _read(SearchResult), json=body, complete=_timed)


def _search_image(
    collection: str, image: bytes, options: SearchOptions
) -> ApiRequest[SearchResult]:
    form = {name: value for name, value in options.model_dump().items() if value is not None}
    if "filter" in form:
        form["filter"] = json.dumps(form["filter"])
    where = _path("collections", collection, "search", "image")
    part = ("file", ("query", image, "application/octet-stream"))
    return ApiRequest("POST", where, _read(SearchResult), form=form, files=[part], complete=_timed)


def _timed(result: SearchResult, headers: httpx.Headers) -> SearchResult:
    return result.model_copy(update={"timing": timing(headers)})


def timing(headers: httpx.Headers) -> Timing | None:
    """The timing in the headers of a response. A proxy may have added stages of its own."""
    stages = dict(STAGE.findall(headers.get("Server-Timing", "")))
    return Timing.model_validate(stages) if "total" in stages else None


def search_many(
    collection: str, queries: Iterable[Mapping[str, Any]]
) -> Iterator[ApiRequest[SearchOutcomes]]:
    """Requests for batches of queries. An image is read when its batch is built."""
    where = _path("collections", collection, "search", "batch")
    bodies = (_body(query) for query in queries)
    for batch in payloads.batches(bodies, BATCH, payloads.json_bytes, MAX_SEARCH_BATCH_BYTES):
        yield ApiRequest("POST", where, _outcomes, json={"queries": batch}, complete=_all_timed)


def _outcomes(body: bytes) -> SearchOutcomes:
    results = _read(SearchBatchOut)(body).results
    return [
        problem_error(result.problem.model_dump(exclude_none=True))
        if isinstance(result, Refused)
        else SearchResult.model_construct(**dict(result))
        for result in results
    ]


def _all_timed(outcomes: SearchOutcomes, headers: httpx.Headers) -> SearchOutcomes:
    return [
        _timed(outcome, headers) if isinstance(outcome, SearchResult) else outcome
        for outcome in outcomes
    ]


def _body(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query as JSON. pydantic.ValidationError for one that is not valid."""
    present = {name: value for name, value in query.items() if value is not None}
    terms = {"terms": [_plain(term) for term in present["terms"]]} if "terms" in present else {}
    return SearchIn.model_validate({**_plain(present), **terms}).model_dump(exclude_unset=True)


def _plain(term: Mapping[str, Any]) -> dict[str, Any]:
    """A query or term with its image and vector as JSON values."""
    plain = dict(term)
    if plain.get("image") is not None:
        plain["image"] = payloads.image(plain["image"])
    if plain.get("vector") is not None:
        plain["vector"] = payloads.numbers(plain["vector"])
    return plain


def job_id(job: Job | str) -> str:
    """The id of a job that is given as a `Job` or by its id."""
    return job if isinstance(job, str) else job.id


def is_outage(error: ProblemError | Unreachable) -> bool:
    """Whether the request may succeed in a moment: the service does not answer, or answers 503."""
    return isinstance(error, Unreachable) or error.status == 503


M = TypeVar("M", bound=BaseModel)


def _read(model: type[M]) -> Callable[[bytes], M]:
    return model.model_validate_json


def _nothing(_: bytes) -> None:
    return None


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
