"""Search by text, image, id or vector."""

import base64
import binascii
import json
import math
import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import ValidationError

from clipfleet.api.depends import UsesCollection, UsesGateway
from clipfleet.api.disconnect import WHILE_CONNECTED
from clipfleet.api.gateway import Gateway
from clipfleet.api.problems import RESPONSES
from clipfleet.common.collection import Collection
from clipfleet.common.errors import (
    ClipfleetError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unavailable,
    Unreadable,
)
from clipfleet.common.filters import parse_filter
from clipfleet.common.fleet import WorkerCard
from clipfleet.common.identity import DEFAULT_NAMESPACE, id_problem, namespace_problem
from clipfleet.common.images import decode
from clipfleet.common.messages import Answer, Query, Search, Term
from clipfleet.common.preprocess import Pixels, Preprocess
from clipfleet.common.schemas import QueryImage, SearchIn, SearchOptions, SearchOut

router = APIRouter(
    prefix="/v1/collections/{name}/search",
    tags=["search"],
    responses=RESPONSES,
    dependencies=[WHILE_CONNECTED],
)

LARGEST_VALUE = 1e15  # squared and summed it still fits 32 bits


@dataclass(frozen=True)
class ByUrl:
    """An image that is yet to be fetched."""

    url: str


AnImage = bytes | ByUrl


@router.post("")
async def search(body: SearchIn, collection: UsesCollection, gateway: UsesGateway) -> SearchOut:
    """The images nearest to the query, nearest first."""
    _check_query(body, collection, gateway)
    try:
        return await _run(_asked(body), body, collection, gateway)
    except Unreadable as error:
        raise InvalidRequest(f"image.url: {error}") from error


@router.post("/image")
async def search_by_upload(
    collection: UsesCollection,
    gateway: UsesGateway,
    file: Annotated[UploadFile, File(description="the query image")],
    top_k: Annotated[int, Form(ge=1)] = 10,
    offset: Annotated[int, Form(ge=0)] = 0,
    filter: Annotated[str, Form(description="a metadata filter as JSON")] = "",  # noqa: A002
    min_score: Annotated[float | None, Form()] = None,
    namespace: Annotated[str, Form(min_length=1)] = DEFAULT_NAMESPACE,
    include_values: Annotated[bool, Form()] = False,
) -> SearchOut:
    """The images nearest to an uploaded one."""
    limit = gateway.settings.limits.image_bytes
    if (file.size or 0) > limit:
        raise TooLarge(f"the image has {file.size} bytes; the limit is {limit}")
    try:
        options = SearchOptions(
            top_k=top_k,
            offset=offset,
            filter=_from_json(filter),
            min_score=min_score,
            namespace=namespace,
            include_values=include_values,
        )
    except ValidationError as error:
        raise InvalidRequest(str(error.errors()[0]["msg"])) from error
    return await _run(await file.read(), options, collection, gateway)


async def _run(
    asked: Term | AnImage, body: SearchOptions, collection: Collection, gateway: Gateway
) -> SearchOut:
    began = time.perf_counter()
    _check_options(body, collection, gateway)
    needs_model = not isinstance(asked, Term) or asked.kind == "text"
    worker = await gateway.worker("query", collection.model, any_model=not needs_model)
    term = asked if isinstance(asked, Term) else await image_term(asked, worker, gateway)
    search = Search(
        collection=collection,
        namespace=body.namespace,
        top_k=body.top_k,
        offset=body.offset,
        filter=body.filter,
        include_values=body.include_values,
    )
    answer = await gateway.queries.ask(Query(term=term, search=search), worker.model)
    if answer.error:
        gateway.forget(collection.name)
        raise refusal(answer)
    least = -math.inf if body.min_score is None else body.min_score
    matches = [match for match in answer.matches if match.score >= least]
    return SearchOut(matches=matches, took_ms=round(1000 * (time.perf_counter() - began), 2))


async def image_term(image: AnImage, worker: WorkerCard, gateway: Gateway) -> Term:
    """Unreadable when it cannot be fetched, BadImage when it is none."""
    if isinstance(image, ByUrl):
        async with gateway.urls.image(image.url) as data:
            return await image_term(data, worker, gateway)
    pixels = await gateway.decode(_pixels, image, worker.preprocess, gateway)
    return Term(kind="image", value=await gateway.leave_pixels(pixels))


def _check_options(body: SearchOptions, collection: Collection, gateway: Gateway) -> None:
    """Everything that can be wrong with a query is said before it costs a worker."""
    limits = gateway.settings.limits
    if problem := namespace_problem(body.namespace):
        raise InvalidRequest(problem)
    if body.top_k > limits.top_k:
        raise InvalidRequest(f"top_k is {body.top_k}; the limit is {limits.top_k}")
    if body.offset + body.top_k > limits.window:
        raise InvalidRequest(f"offset + top_k is over the limit of {limits.window}")
    if body.min_score is not None and collection.metric == "euclidean":
        raise InvalidRequest("min_score needs a similarity; euclidean scores are distances")
    if body.include_values and body.top_k * collection.dim > limits.values:
        most = limits.values // collection.dim
        raise InvalidRequest(f"with include_values, top_k is at most {most} here")
    parse_filter(body.filter or {}, collection.fields)


def _check_query(body: SearchIn, collection: Collection, gateway: Gateway) -> None:
    if body.text is not None:
        check_text(body.text, gateway)
    if body.id is not None and (problem := id_problem(body.id)):
        raise InvalidRequest(problem)
    if body.vector is not None:
        check_vector(body.vector, collection)


def check_text(text: str, gateway: Gateway) -> None:
    longest = gateway.settings.limits.text_chars
    if len(text) > longest:
        raise InvalidRequest(f"the text has {len(text)} characters; {longest} at most")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("the text is not valid Unicode") from error


def check_vector(vector: list[float], collection: Collection) -> None:
    if len(vector) != collection.dim:
        raise InvalidRequest(
            f"the vector has {len(vector)} numbers, those of collection {collection.name!r} "
            f"have {collection.dim}"
        )
    if collection.metric == "cosine" and not any(vector):
        raise InvalidRequest("a vector of zeros has no direction to compare by cosine")
    if any(abs(value) > LARGEST_VALUE for value in vector):
        raise InvalidRequest(f"a number of the vector is over {LARGEST_VALUE:g}")


def _asked(body: SearchIn) -> Term | AnImage:
    if body.image is not None:
        return an_image(body.image)
    if body.text is not None:
        return Term(kind="text", value=body.text)
    if body.id is not None:
        return Term(kind="id", value=body.id)
    return Term(kind="vector", value=tuple(body.vector or ()))


def _pixels(data: bytes, spec: Preprocess, gateway: Gateway) -> Pixels:
    return spec.apply(decode(data, gateway.settings.limits, edge=spec.edge()).image)


def an_image(given: QueryImage) -> AnImage:
    return ByUrl(given.url) if given.url is not None else _from_base64(given.base64 or "")


def _from_base64(text: str) -> bytes:
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("an image's base64 is not base64") from error


def _from_json(text: str) -> dict[str, Any] | None:
    try:
        raw = json.loads(text) if text else None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("filter is not JSON") from error
    if raw is not None and not isinstance(raw, dict):
        raise InvalidRequest("filter must be a JSON object")
    return raw


def refusal(answer: Answer) -> ClipfleetError:
    """The error that a worker answered with."""
    kinds: dict[str, type[ClipfleetError]] = {
        "not-found": NotFound,
        "invalid-request": InvalidRequest,
        "unavailable": Unavailable,
    }
    return kinds.get(answer.error, ClipfleetError)(answer.detail)
