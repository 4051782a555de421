"""Search by text, image, id or vector, or by a mix of them; one query or many at once."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, UploadFile
from pydantic import BeforeValidator, ConfigDict, ValidationError, WithJsonSchema, model_validator

from clipfleet.api import problems
from clipfleet.api.access import GuardedRoute, needs
from clipfleet.api.depends import UsesCollection, UsesGateway
from clipfleet.api.disconnect import WHILE_CONNECTED
from clipfleet.api.exact import ask_exactly
from clipfleet.api.gateway import Gateway
from clipfleet.api.problems import RESPONSES
from clipfleet.api.terms import Given, Picture, given_terms, needs_model, ready_terms
from clipfleet.common.collection import BUILTIN_FIELDS, RESERVED, Collection
from clipfleet.common.errors import (
    ClipfleetError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unavailable,
)
from clipfleet.common.filters import parse_filter
from clipfleet.common.identity import namespace_problem, text_problem
from clipfleet.common.messages import Answer, Query, Search
from clipfleet.common.schemas import SearchOptions, SearchOut
from clipfleet.common.search_schemas import Refused, SearchBatchIn, SearchBatchOut, SearchIn

router = APIRouter(
    prefix="/v1/collections/{name}/search",
    tags=["search"],
    responses=RESPONSES,
    dependencies=[WHILE_CONNECTED],
    route_class=GuardedRoute,
)


def _from_json(given: Any) -> Any:
    try:
        return json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise ValueError("filter is not JSON") from error


class UploadedImage(SearchOptions):
    """The options of a search as a form, where all is written as text, and the image."""

    model_config = ConfigDict(strict=False)

    file: UploadFile
    filter: Annotated[
        dict[str, Any] | None,
        BeforeValidator(_from_json),
        WithJsonSchema({"type": "string", "description": "a metadata filter as JSON"}),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_written_is_nothing_said(cls, form: Any) -> Any:
        return {name: value for name, value in form.items() if value != ""}


@router.post("")
@needs("read", body="search")
async def search(body: SearchIn, collection: UsesCollection, gateway: UsesGateway) -> SearchOut:
    """The images nearest to the query, nearest first."""
    return await _search(body, collection, gateway, _turns(gateway))


@router.post("/image")
@needs("read", body="picture")
async def search_by_upload(
    form: Annotated[UploadedImage, File()], collection: UsesCollection, gateway: UsesGateway
) -> SearchOut:
    """The images nearest to an uploaded one."""
    limit = gateway.settings.limits.image_bytes
    if (form.file.size or 0) > limit:
        raise TooLarge(f"the image has {form.file.size} bytes; the limit is {limit}")
    given = [Picture(await form.file.read())]
    return await _run(given, form, collection, gateway, _turns(gateway))


@router.post("/batch")
@needs("read", body="batch")
async def search_batch(
    body: SearchBatchIn, collection: UsesCollection, gateway: UsesGateway, request: Request
) -> SearchBatchOut:
    """Up to 64 queries at once. One that cannot be answered has a `problem` in its place."""
    began = time.perf_counter()
    queries = [_checked(raw) for raw in body.queries]
    _check_images(queries, gateway)
    turns = _turns(gateway)
    asked = (_one_of_many(query, collection, gateway, turns) for query in queries)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    away = [one for one in answers if isinstance(one, Unavailable)]
    if len(away) == len(answers):
        raise away[0]
    results = [
        Refused(problem=problems.of_any(request.scope, one))
        if isinstance(one, BaseException)
        else one
        for one in answers
    ]
    return SearchBatchOut(results=results, took_ms=_ms_since(began))


def _checked(raw: Any) -> SearchIn | ValidationError:
    try:
        return SearchIn.model_validate(raw)
    except ValidationError as error:
        return error


def _check_images(queries: Sequence[SearchIn | ValidationError], gateway: Gateway) -> None:
    most = gateway.settings.limits.embeds
    asked = [query for query in queries if isinstance(query, SearchIn)]
    images = sum(one.image is not None for query in asked for one in (query, *(query.terms or ())))
    if images > most:
        raise TooLarge(f"there are {images} images in one request; the limit is {most}")


async def _one_of_many(
    query: SearchIn | ValidationError,
    collection: Collection,
    gateway: Gateway,
    turns: asyncio.Semaphore,
) -> SearchOut:
    if isinstance(query, ValidationError):
        raise query
    return await _search(query, collection, gateway, turns)


def _turns(gateway: Gateway) -> asyncio.Semaphore:
    return asyncio.Semaphore(gateway.settings.fetch.queries)


async def _search(
    body: SearchIn, collection: Collection, gateway: Gateway, turns: asyncio.Semaphore
) -> SearchOut:
    given = given_terms(body, collection, gateway)
    return await _run(given, body, collection, gateway, turns)


async def _run(
    given: Sequence[Given],
    body: SearchOptions,
    collection: Collection,
    gateway: Gateway,
    turns: asyncio.Semaphore,
) -> SearchOut:
    began = time.perf_counter()
    _check_options(body, collection, gateway)
    worker = await gateway.worker("query", collection.model, any_model=not needs_model(given))
    terms = await ready_terms(given, worker, gateway, turns)
    search = Search(
        collection=collection,
        candidates=gateway.settings.limits.candidates,
        **{name: getattr(body, name) for name in SearchOptions.model_fields},
    )
    answer = await ask(Query(terms=terms, search=search), worker.model, gateway)
    return SearchOut(matches=list(answer.matches), took_ms=_ms_since(began))


async def ask(query: Query, model: str, gateway: Gateway) -> Answer:
    """The error that a worker answers with comes out."""
    if query.search and query.search.exact:
        answer = await ask_exactly(query, model, gateway)
    else:
        answer = await gateway.queries.ask(query, model)
    if answer.error:
        if query.search:
            gateway.forget(query.search.collection.name)
        raise refusal(answer)
    return answer


def _ms_since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 2)


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
    _check_sifting(body, gateway)
    parse_filter(body.filter or {}, collection.fields)


def _check_sifting(body: SearchOptions, gateway: Gateway) -> None:
    most = gateway.settings.limits.candidates
    sifts = body.group_by is not None or body.collapse is not None
    if sifts and body.offset + body.top_k > most:
        raise InvalidRequest(f"with group_by or collapse, offset + top_k is at most {most}")
    if body.group_by is None:
        return
    if problem := text_problem("group_by", body.group_by, 256):
        raise InvalidRequest(problem)
    if body.group_by in RESERVED - BUILTIN_FIELDS.keys():
        raise InvalidRequest(f"{body.group_by!r} is no field to group by")


def refusal(answer: Answer) -> ClipfleetError:
    """The error that a worker answered with."""
    kinds: dict[str, type[ClipfleetError]] = {
        "not-found": NotFound,
        "invalid-request": InvalidRequest,
        "unavailable": Unavailable,
    }
    return kinds.get(answer.error, ClipfleetError)(answer.detail)
