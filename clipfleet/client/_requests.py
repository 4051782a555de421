"""Builds the request of each method of the clients, and reads its response.

Sends nothing, so `Client` and `AsyncClient` share this module.
"""

import json
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from clipfleet.client import arguments, payloads
from clipfleet.client._config import proxy_hint
from clipfleet.client._retries import Outcome
from clipfleet.client.arguments import checking
from clipfleet.client.folder_upload import Outgoing, form_parts
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
    OrderedIds,
    OrderIn,
    RecallIn,
    RecallOut,
    RowPage,
    RowsIn,
    UpdateIn,
    UpdateOut,
    Which,
)
from clipfleet.common.http.fleet import FleetOut
from clipfleet.common.http.maps import MapIn, MapMethod
from clipfleet.common.http.migrations import MigrationIn, SwapIn
from clipfleet.common.http.registered import NAME, SourceIn, SourceList
from clipfleet.common.http.schemas import (
    CollectionIn,
    CollectionList,
    JobIn,
    JobList,
    JobState,
    SearchOptions,
    Upserted,
)
from clipfleet.common.http.search import BATCH, Refused, SearchBatchOut, SearchIn
from clipfleet.common.http.sources import Source
from clipfleet.common.http.tags import TagsIn, TagsOut
from clipfleet.common.http.uploads import KnownOut, UploadEnd, UploadIn, UploadOut
from clipfleet.common.http.webhooks import key_of
from clipfleet.errors import (
    ProblemError,
    Unreachable,
    invalid_argument,
    problem_error,
    problem_of,
)
from clipfleet.results import (
    Alias,
    Collection,
    EventsAnswer,
    Failures,
    Image,
    Job,
    Map,
    MapPoints,
    Migration,
    Missing,
    RegisteredSource,
    SavedTags,
    SearchResult,
    Timing,
    UnreadableImages,
)

T = TypeVar("T")

OnExisting = Literal["skip", "replace"]
MAX_VECTORS, MAX_VECTORS_BYTES = 1_000, 16_000_000  # in one request
MAX_UPDATES, MAX_UPDATES_BYTES = 1_000, 4_000_000  # images in one request
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
        follows: a redirect leads to another server, which is asked without the API key.
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
    follows: bool = False
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
            "follow_redirects": self.follows,
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
    truncated_texts: list[int] = []


def collections() -> ApiRequest[list[Collection]]:
    return ApiRequest(
        "GET", "/v1/collections", lambda body: _read(CollectionList)(body).collections
    )


def collection(name: str) -> ApiRequest[Collection]:
    return ApiRequest("GET", _path("collections", name), _read(Collection))


@checking()
def create_collection(
    name: str,
    metric: Metric,
    model: str | None,
    dim: int | None,
    fields: Mapping[str, FieldType] | None,
) -> ApiRequest[Collection]:
    declared = arguments.mapping("fields", fields or {}, 'a mapping such as {"year": "int"}')
    described = {"metric": metric, "model": model, "dim": dim, "fields": declared}
    body = CollectionIn.model_validate(_plain_options(described))
    return ApiRequest("PUT", _path("collections", name), _read(Collection), json=body.model_dump())


def delete_collection(name: str) -> ApiRequest[None]:
    return ApiRequest("DELETE", _path("collections", name), _nothing, repeatable=False)


def aliases() -> ApiRequest[list[Alias]]:
    return ApiRequest("GET", "/v1/aliases", lambda body: _read(AliasList)(body).aliases)


def alias(name: str) -> ApiRequest[Alias]:
    return ApiRequest("GET", _path("aliases", name), _read(Alias))


@checking()
def set_alias(name: str, collection: str) -> ApiRequest[Alias]:
    body = AliasIn(collection=collection).model_dump()
    return ApiRequest("PUT", _path("aliases", name), _read(Alias), json=body)


def delete_alias(name: str) -> ApiRequest[None]:
    return ApiRequest("DELETE", _path("aliases", name), _nothing, repeatable=False)


def migration(collection: str) -> ApiRequest[Migration]:
    return ApiRequest("GET", _path("collections", collection, "migrations"), _read(Migration))


@checking()
def tag(
    collection: str,
    vocabulary: Iterable[str],
    field: str,
    min_confidence: float,
    template: str,
    filter: AnyFilter,
    namespace: str | None,
    dry_run: bool,
    save: bool,
) -> ApiRequest[TagsOut]:
    body = TagsIn(
        vocabulary=list(arguments.items("vocabulary", vocabulary, "a list of words")),
        field=field,
        min_confidence=min_confidence,
        template=template,
        filter=dict(filtered) if (filtered := arguments.as_filter(filter)) else None,
        namespace=namespace,
        dry_run=dry_run,
        save=save,
    ).model_dump()
    path = _path("collections", collection, "tags")
    return ApiRequest("POST", path, _read(TagsOut), json=body, repeatable=dry_run)


def saved_tags(collection: str) -> ApiRequest[SavedTags]:
    return ApiRequest("GET", _path("collections", collection, "tags"), _read(SavedTags))


def forget_tags(collection: str) -> ApiRequest[None]:
    return ApiRequest("DELETE", _path("collections", collection, "tags"), _nothing)


@checking()
def start_migration(collection: str, model: str) -> ApiRequest[Migration]:
    body = MigrationIn(model=model).model_dump()
    path = _path("collections", collection, "migrations")
    return ApiRequest("POST", path, _read(Migration), json=body, repeatable=False)


@checking()
def make_map(
    collection: str, method: MapMethod, field: str | None, namespace: str, seed: int
) -> ApiRequest[Job]:
    body = MapIn(method=method, field=field, namespace=namespace, seed=seed).model_dump()
    path = _path("collections", collection, "map")
    return ApiRequest("POST", path, _read(Job), json=body, repeatable=False)


def map_of(collection: str, namespace: str) -> ApiRequest[Map]:
    path = _path("collections", collection, "map")
    return ApiRequest("GET", path, _read(Map), params={"namespace": namespace})


def map_points(
    collection: str, namespace: str, field: str | None, page: int
) -> ApiRequest[MapPoints]:
    path = _path("collections", collection, "map", "points")
    params = {"namespace": namespace, "page": page, "field": field or ""}
    return ApiRequest("GET", path, _read(MapPoints), params=params)


@checking()
def change_migration(
    collection: str, step: str, force: bool | None = None
) -> ApiRequest[Migration]:
    """Pause, resume, swap, rollback or finish: each can be repeated."""
    path = _path("collections", collection, "migrations", step)
    body = None if force is None else SwapIn(force=force).model_dump()
    return ApiRequest("POST", path, _read(Migration), json=body)


def cancel_migration(collection: str) -> ApiRequest[Migration]:
    path = _path("collections", collection, "migrations")
    return ApiRequest("DELETE", path, _read(Migration))


@checking()
def unreadable(collection: str, cursor: str, limit: int) -> ApiRequest[UnreadableImages]:
    path = _path("collections", collection, "migrations", "unreadable")
    query = {"cursor": cursor, "limit": limit}
    return ApiRequest("GET", path, _read(UnreadableImages), params=query)


@checking()
def register_source(
    collection: str,
    name: str,
    source: AnySource,
    interval: float | str | None,
    paused: bool | None,
    namespace: str,
    label_from_folder: bool,
    on_existing: OnExisting,
    exif: bool,
    mirror: bool | Mapping[str, Any],
    webhook: Mapping[str, str],
) -> ApiRequest[RegisteredSource]:
    checked = _checked_source(source, label_from_folder)
    options = _index_options(namespace, on_existing, exif, mirror)
    when = {"interval": interval, "paused": paused}
    body = SourceIn.model_validate({"source": checked, **_plain_options({**options, **when})})
    json = {**body.model_dump(exclude={"webhook"}), **({"webhook": webhook} if webhook else {})}
    if not json["mirror"]:
        del json["mirror"]
    return ApiRequest("PUT", _source_path(collection, name), _read(RegisteredSource), json=json)


def sources(collection: str) -> ApiRequest[list[RegisteredSource]]:
    where = _path("collections", collection, "sources")
    return ApiRequest("GET", where, lambda body: _read(SourceList)(body).sources)


def source(collection: str, name: str) -> ApiRequest[RegisteredSource]:
    return ApiRequest("GET", _source_path(collection, name), _read(RegisteredSource))


def change_source(
    collection: str, name: str, change: Literal["pause", "resume"]
) -> ApiRequest[RegisteredSource]:
    where = _source_path(collection, name, change)
    return ApiRequest("POST", where, _read(RegisteredSource))


def run_source(collection: str, name: str) -> ApiRequest[Job]:
    return ApiRequest("POST", _source_path(collection, name, "run"), _read(Job), repeatable=False)


def delete_source(collection: str, name: str) -> ApiRequest[None]:
    where = _source_path(collection, name)
    return ApiRequest("DELETE", where, _nothing, repeatable=False)


def notify_source(collection: str, name: str, keys: Sequence[str]) -> ApiRequest[EventsAnswer]:
    texts = [arguments.text("keys", key) for key in arguments.items("keys", keys, "keys")]
    where = _source_path(collection, name, "events")
    return ApiRequest("POST", where, _read(EventsAnswer), json={"keys": texts})


def _source_path(collection: str, name: str, *rest: str) -> str:
    if not re.match(NAME, arguments.text("name", name)):
        raise invalid_argument("name", f"{name!r} is not letters, digits, '.', '_' and '-'")
    return _path("collections", collection, "sources", name, *rest)


def _index_options(
    namespace: str, on_existing: OnExisting, exif: bool, mirror: bool | Mapping[str, Any]
) -> dict[str, Any]:
    options: dict[str, Any] = {"namespace": namespace, "on_existing": on_existing, "exif": exif}
    if mirror is not False:
        options["mirror"] = {} if mirror is True else arguments.as_json("mirror", mirror)
    return options


def _checked_source(source: AnySource, label_from_folder: bool) -> Source:
    if isinstance(source, Mapping):
        source = arguments.as_json("source", source)
    try:
        return source_of(source, label_from_folder=label_from_folder)
    except ValueError as error:
        raise invalid_argument("source", str(error)) from error


@checking()
def index(
    collection: str,
    source: AnySource,
    namespace: str,
    label_from_folder: bool,
    on_existing: OnExisting,
    idempotency_key: str | None,
    exif: bool,
    mirror: bool | Mapping[str, Any],
) -> ApiRequest[Job]:
    checked = _checked_source(source, label_from_folder)
    options = _index_options(namespace, on_existing, exif, mirror)
    body = JobIn.model_validate({"source": checked, **_plain_options(options)})
    where = _path("collections", collection, "jobs")
    json = body.model_dump(exclude={"webhook"})  # `with_webhook` adds it
    for name in ("exif", "mirror"):  # earlier releases do not know them
        if not json[name]:
            del json[name]
    return ApiRequest("POST", where, _read(Job), json=json, headers=_key(idempotency_key))


def _key(key: str | None = None) -> dict[str, str]:
    """The header that makes a job request repeatable: the service starts one job per key."""
    if key is None:
        return {"Idempotency-Key": secrets.token_hex(16)}
    return {"Idempotency-Key": arguments.header("idempotency_key", key)}


def upload(
    collection: str,
    files: Files,
    namespace: str,
    label: str,
    on_existing: OnExisting,
    idempotency_key: str | None,
    exif: bool,
    ids: Sequence[str] | None,
    labels: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any] | None] | None,
) -> ApiRequest[Job]:
    form = {
        "namespace": arguments.text("namespace", namespace),
        "label": arguments.text("label", label, empty=True),
        "on_existing": arguments.text("on_existing", on_existing),
        **({"exif": "true"} if exif else {}),
    }
    parts = payloads.file_parts(files, ids)
    if items := payloads.upload_items(parts, labels, metadata):
        form["items"] = items
    return ApiRequest(
        "POST",
        _path("collections", collection, "images"),
        _read(Job),
        form=form,
        files=parts,
        headers=_key(idempotency_key),
    )


def open_upload(
    collection: str, namespace: str, on_existing: OnExisting, exif: bool, key: str
) -> ApiRequest[UploadOut]:
    body = UploadIn(namespace=namespace, on_existing=on_existing, exif=exif, key=key)
    where = _path("collections", collection, "uploads")
    return ApiRequest("POST", where, _read(UploadOut), json=body.model_dump())


def known(upload: UploadOut, ids: Sequence[str]) -> ApiRequest[KnownOut]:
    where = _path("collections", upload.collection, "uploads", upload.id, "known")
    return ApiRequest("POST", where, _read(KnownOut), json={"ids": list(ids)})


def add_images(upload: UploadOut, batch: Sequence[Outgoing]) -> ApiRequest[UploadOut]:
    form, files = form_parts(batch)
    where = _path("collections", upload.collection, "uploads", upload.id, "images")
    # Without a file, httpx would not send the form as a multipart one.
    parts: list[Part] = files or [("none", ("", b"", "application/octet-stream"))]
    return ApiRequest("POST", where, _read(UploadOut), form=form, files=parts)


def start_upload(
    upload: UploadOut, images: int, left_out: Mapping[str, int], name: str
) -> ApiRequest[Job]:
    body = UploadEnd(images=images, left_out=dict(left_out), name=name[:1_000])
    where = _path("collections", upload.collection, "uploads", upload.id, "job")
    return ApiRequest("POST", where, _read(Job), json=body.model_dump(exclude={"webhook"}))


def require_webhook(url: str | None, secret: str | None) -> dict[str, str]:
    """A webhook as JSON; {} for none. InvalidRequest for a secret that is not one."""
    if url is None:
        if secret is not None:
            raise invalid_argument("webhook_secret", "it needs webhook=")
        return {}
    webhook = {"url": arguments.text("webhook", url)}
    if secret is not None:
        webhook["secret"] = arguments.text("webhook_secret", secret)
        try:
            key_of(secret)
        except ValueError as error:
            raise invalid_argument("webhook_secret", str(error), is_sentence=True) from None
    return webhook


def with_webhook(request: ApiRequest[Job], url: str | None, secret: str | None) -> ApiRequest[Job]:
    """The request of a job that reports its end. InvalidRequest for a secret that is not one."""
    webhook = require_webhook(url, secret)
    if not webhook:
        return request
    if request.form is None:
        return replace(request, json={**request.json, "webhook": webhook})
    fields = {f"webhook_{name}": value for name, value in webhook.items()}
    return replace(request, form={**request.form, **fields})


def jobs(
    limit: int, offset: int, collection: str | None, state: JobState | Sequence[JobState] | None
) -> ApiRequest[list[Job]]:
    states = [state] if isinstance(state, str) else arguments.items("state", state or (), "states")
    params = {
        **_page(limit, offset),
        "collection": collection and arguments.text("collection", collection),
        "state": [arguments.text("state", name) for name in states],
    }
    return ApiRequest("GET", "/v1/jobs", lambda body: _read(JobList)(body).jobs, params=params)


def job(job: Job | str) -> ApiRequest[Job]:
    return ApiRequest("GET", _path("jobs", job_id(job)), _read(Job))


def cancel(job: Job | str) -> ApiRequest[Job]:
    return ApiRequest("POST", _path("jobs", job_id(job), "cancel"), _read(Job))


def retry(job: Job | str) -> ApiRequest[Job]:
    return ApiRequest("POST", _path("jobs", job_id(job), "retry"), _read(Job), headers=_key())


def delete_job(job: Job | str) -> ApiRequest[None]:
    return ApiRequest("DELETE", _path("jobs", job_id(job)), _nothing, repeatable=False)


def _page(limit: int, offset: int) -> dict[str, int]:
    return {"limit": arguments.whole("limit", limit), "offset": arguments.whole("offset", offset)}


def failures(job: Job | str, limit: int, offset: int) -> ApiRequest[Failures]:
    page = _page(limit, offset)
    return ApiRequest("GET", _path("jobs", job_id(job), "failures"), _read(Failures), params=page)


def missing(job: Job | str, limit: int, cursor: str) -> ApiRequest[Missing]:
    params = {
        "limit": arguments.whole("limit", limit),
        "cursor": arguments.text("cursor", cursor, empty=True),
    }
    return ApiRequest("GET", _path("jobs", job_id(job), "missing"), _read(Missing), params=params)


def upsert(
    collection: str, vectors: Iterable[Mapping[str, Any]], namespace: str
) -> Iterator[ApiRequest[int]]:
    where = _path("collections", collection, "vectors")
    namespace = arguments.text("namespace", namespace)
    listed = enumerate(arguments.items("vectors", vectors, "a list of mappings"))
    rows = (payloads.vector(f"vectors.{n}", fields) for n, fields in listed)
    for batch in payloads.batches(rows, MAX_VECTORS, payloads.json_bytes, MAX_VECTORS_BYTES):
        body = {"vectors": batch, "namespace": namespace}
        yield ApiRequest("POST", where, lambda body: _read(Upserted)(body).upserted, json=body)


def _image_params(id: str, namespace: str) -> dict[str, str]:
    return {"id": arguments.text("id", id), "namespace": arguments.text("namespace", namespace)}


def image(collection: str, id: str, namespace: str, include_values: bool) -> ApiRequest[Image]:
    params = {**_image_params(id, namespace), "include_values": include_values}
    return ApiRequest(
        "GET", _path("collections", collection, "images"), _read(Image), params=params
    )


def delete_image(collection: str, id: str, namespace: str) -> ApiRequest[None]:
    params = _image_params(id, namespace)
    where = _path("collections", collection, "images")
    return ApiRequest("DELETE", where, _nothing, params=params, repeatable=False)


def thumbnail(collection: str, id: str, namespace: str) -> ApiRequest[bytes]:
    params = _image_params(id, namespace)
    return ApiRequest("GET", _path("collections", collection, "thumbnail"), bytes, params=params)


def original(collection: str, id: str, namespace: str) -> ApiRequest[bytes]:
    where, params = (
        _path("collections", collection, "images", "original"),
        _image_params(id, namespace),
    )
    return ApiRequest("GET", where, bytes, params=params, follows=True)


def preview(collection: str, id: str, namespace: str) -> ApiRequest[bytes]:
    where = _path("collections", collection, "images", "preview")
    return ApiRequest("GET", where, bytes, params=_image_params(id, namespace))


def embed(
    texts: Sequence[str] | None, images: Sequence[ImageInput] | None, model: str | None
) -> Iterator[ApiRequest[list[list[float]]]]:
    """Requests for batches. An image is read when its batch is built.

    Raises:
        InvalidRequest: at the call, for wrong arguments; later, for an item.
    """
    if (texts is None) == (images is None):
        raise invalid_argument("", "give exactly one of texts= and images=")
    model = None if model is None else arguments.text("model", model)
    if texts is not None:
        listed = enumerate(arguments.items("texts", texts, "a list of texts"))
        return _embed("texts", (arguments.text(f"texts.{n}", item) for n, item in listed), model)
    each = enumerate(arguments.items("images", images, "a list of images"))
    return _embed("images", (payloads.image(item, f"images.{n}") for n, item in each), model)


def _embed(
    what: str, items: Iterable[Any], model: str | None
) -> Iterator[ApiRequest[list[list[float]]]]:
    start = 0
    for batch in payloads.batches(items, MAX_EMBEDS, payloads.json_bytes, MAX_EMBEDS_BYTES):
        body = {what: batch} if model is None else {what: batch, "model": model}
        yield ApiRequest("POST", "/v1/embed", partial(_embeddings, start), json=body)
        start += len(batch)


def _embeddings(start: int, body: bytes) -> list[list[float]]:
    """The embeddings in a response, with a warning about texts that the model has cut.

    Args:
        start: the index of the first item of the request.
        body: the response.
    """
    answer = _read(_Embeddings)(body)
    if answer.truncated_texts:
        places = ", ".join(f"texts[{start + n}]" for n in answer.truncated_texts[:10])
        message = f"{places}: longer than the model reads; only the beginning counts"
        warnings.warn(message, stacklevel=6)
    return answer.embeddings


@checking()
def count(collection: str, filter: AnyFilter, namespace: str) -> ApiRequest[int]:
    where = _path("collections", collection, "count")
    chosen = {"filter": arguments.as_filter(filter), "namespace": namespace}
    body = Which.model_validate(_plain_options(chosen)).model_dump()
    return ApiRequest("POST", where, lambda body: _read(Count)(body).count, json=body)


def ids(collection: str, cursor: str, namespace: str) -> ApiRequest[IdPage]:
    namespace = arguments.text("namespace", namespace)
    params = {"cursor": cursor, "limit": IDS_PER_PAGE, "namespace": namespace}
    return ApiRequest("GET", _path("collections", collection, "ids"), _read(IdPage), params=params)


@checking()
def ordered_ids(
    collection: str, order_by: str, descending: bool, filter: AnyFilter, namespace: str
) -> ApiRequest[list[str]]:
    chosen = {
        "order_by": order_by,
        "descending": descending,
        "filter": arguments.as_filter(filter),
        "namespace": namespace,
    }
    body = OrderIn.model_validate(_plain_options(chosen)).model_dump()
    where = _path("collections", collection, "ids")
    return ApiRequest("POST", where, lambda body: _read(OrderedIds)(body).ids, json=body)


@checking()
def delete(
    collection: str, filter: AnyFilter, namespace: str, all: bool
) -> ApiRequest[DeletedSome]:
    where = _path("collections", collection, "delete")
    chosen = {"filter": arguments.as_filter(filter), "namespace": namespace, "all": all}
    body = DeleteIn.model_validate(_plain_options(chosen)).model_dump()
    return ApiRequest("POST", where, _read(DeletedSome), json=body, repeatable=False)


@checking()
def update_by_filter(
    collection: str,
    filter: AnyFilter,
    namespace: str,
    all: bool,
    label: str | None,
    metadata: Mapping[str, Any] | None,
    dry_run: bool,
    after: str,
) -> ApiRequest[UpdateOut]:
    chosen = {"namespace": namespace, "all": all, "dry_run": dry_run, "after": after}
    chosen |= {} if label is None else {"label": label}
    body = {"filter": arguments.as_filter(filter), **_plain_options(chosen)}
    if metadata is not None:
        body["metadata"] = arguments.as_changes("metadata", metadata)
    checked = UpdateIn.model_validate(body).model_dump(exclude_unset=True)
    return ApiRequest("PATCH", _images(collection), _read(UpdateOut), json=checked)


def update_images(
    collection: str, images: Iterable[Mapping[str, Any]], namespace: str, dry_run: bool
) -> Iterator[ApiRequest[UpdateOut]]:
    namespace = arguments.text("namespace", namespace)
    listed = enumerate(arguments.items("images", images, "a list of mappings"))
    rows = (payloads.image_change(f"images.{n}", fields) for n, fields in listed)
    for batch in payloads.batches(rows, MAX_UPDATES, payloads.json_bytes, MAX_UPDATES_BYTES):
        body = {"images": batch, "namespace": namespace, "dry_run": dry_run}
        yield ApiRequest("PATCH", _images(collection), _read(UpdateOut), json=body)


def require_images_alone(
    filter: AnyFilter, all: bool, label: str | None, metadata: Mapping[str, Any] | None
) -> None:
    """InvalidRequest when what belongs to a filter is given beside images."""
    if filter or all:
        raise invalid_argument("images", "give exactly one of images=, filter= and all=True")
    if label is not None or metadata is not None:
        raise invalid_argument("images", "label and metadata belong into each of the images")


def added(total: UpdateOut, answer: UpdateOut) -> UpdateOut:
    """The sum of what several requests changed."""
    return UpdateOut(
        matched=total.matched + answer.matched,
        updated=total.updated + answer.updated,
        missing=[*total.missing, *answer.missing],
    )


def _images(collection: str) -> str:
    return _path("collections", collection, "images")


@checking()
def recall(
    collection: str, k: int, sample: int, filter: AnyFilter, namespace: str, seed: int
) -> ApiRequest[RecallOut]:
    where = _path("collections", collection, "recall")
    options = {"k": k, "sample": sample, "namespace": namespace, "seed": seed}
    chosen = {"filter": arguments.as_filter(filter), **_plain_options(options)}
    body = RecallIn.model_validate(chosen)
    return ApiRequest(
        "POST", where, _read(RecallOut), json=body.model_dump(), timeout_s=RECALL_TIMEOUT_S
    )


def fleet() -> ApiRequest[FleetOut]:
    return ApiRequest("GET", "/v1/fleet", _read(FleetOut))


def export(collection: str) -> ApiRequest[None]:
    return ApiRequest("GET", _path("collections", collection, "export"), _nothing)


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON: numbers of numpy as Python's, and so on. None stays."""
    return {name: arguments.as_json(name, value) for name, value in options.items()}


def rows(collection: str, body: RowsIn) -> ApiRequest[RowPage]:
    where = _path("collections", collection, "rows")
    return ApiRequest("POST", where, _read(RowPage), json=body.model_dump())


@checking()
def search(
    collection: str, query: Mapping[str, Any], options: Mapping[str, Any]
) -> ApiRequest[SearchResult]:
    """The request of one search.

    Args:
        collection: the collection.
        query: the ways to search; exactly one value is not None.
        options: values of `SearchOptions`.
    """
    present = [name for name, value in query.items() if value is not None]
    if len(present) != 1:
        expected, got = ", ".join(f"{name}=" for name in query), ", ".join(present) or "none"
        raise invalid_argument("", f"give exactly one of {expected} (given: {got})")
    image = query.get("image")
    checked = SearchOptions.model_validate(_query_options(options))
    if image is not None and not payloads.is_address(image):
        return _search_image(collection, payloads.image_bytes(image), checked)
    where = _path("collections", collection, "search")
    body = _body({**query, **checked.model_dump(exclude_defaults=True)})
    return ApiRequest("POST", where, _read(SearchResult), json=body, complete=_timed)


def _query_options(options: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The options of a search, and what to search for unless it is an image or a vector."""
    where = f"{name}." if name else ""
    return {
        key: arguments.as_filter(value, f"{where}filter")
        if key == "filter"
        else arguments.as_json(f"{where}{key}", value)
        for key, value in options.items()
    }


def _search_image(
    collection: str, image: bytes, options: SearchOptions
) -> ApiRequest[SearchResult]:
    form = options.model_dump(exclude_defaults=True)
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
    bodies = _bodies(arguments.items("queries", queries, "a list of mappings"))
    for batch in payloads.batches(bodies, BATCH, payloads.json_bytes, MAX_SEARCH_BATCH_BYTES):
        yield ApiRequest("POST", where, _outcomes, json={"queries": batch}, complete=_all_timed)


def _bodies(queries: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for n, query in enumerate(queries):
        name = f"queries.{n}"
        with checking(name):
            body = _body(
                arguments.mapping(name, query, 'a mapping such as {"text": "a dog"}'), name
            )
        yield body


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


def _body(query: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """A query as JSON. Within `checking`, for it may not be valid.

    Args:
        query: the query.
        name: name of the argument that it is part of.
    """
    where = f"{name}." if name else ""
    present = {key: value for key, value in query.items() if value is not None}
    terms = {}
    if "terms" in present:
        listed = arguments.items(f"{where}terms", present.pop("terms"), "a list of mappings")
        terms = {"terms": [_term(term, f"{where}terms.{n}") for n, term in enumerate(listed)]}
    body = SearchIn.model_validate({**_plain(present, name), **terms})
    return body.model_dump(exclude_unset=True)


def _term(term: Any, name: str) -> dict[str, Any]:
    return _plain(arguments.mapping(name, term, 'a mapping such as {"text": "a dog"}'), name)


def _plain(term: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A query or term with its image and vector as JSON values."""
    where = f"{name}." if name else ""
    large = {key: term[key] for key in ("image", "vector") if term.get(key) is not None}
    plain = _query_options({key: term[key] for key in term if key not in large}, name)
    if "image" in large:
        plain["image"] = payloads.image(large["image"], f"{where}image")
    if "vector" in large:
        plain["vector"] = arguments.numbers(f"{where}vector", large["vector"])
    return plain


def job_id(job: Job | str) -> str:
    """The id of a job that is given as a `Job` or by its id."""
    return arguments.text("job", getattr(job, "id", job))


def is_outage(error: ProblemError | Unreachable) -> bool:
    """Whether the request may succeed in a moment: the service does not answer, or answers 503."""
    return isinstance(error, Unreachable) or error.status == 503


M = TypeVar("M", bound=BaseModel)


def _read(model: type[M]) -> Callable[[bytes], M]:
    return model.model_validate_json


def _nothing(_: bytes) -> None:
    return None


def _path(kind: str, name: str, *rest: str) -> str:
    """The path of one thing of a kind, such as "collections", or of a part of it."""
    argument = kind.removesuffix("s")
    plain = arguments.text(argument, name)
    if plain in (".", ".."):
        raise invalid_argument(argument, f"{plain!r} is no name")
    return "/v1/" + "/".join(quote(part, safe="") for part in (kind, plain, *rest))
