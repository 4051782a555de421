"""Search by text, image, id or vector, or by a mix of them; one query or many at once.

Matches go out as the worker wrote them: nothing of an answer is parsed here.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, Response, UploadFile
from pydantic import BeforeValidator, ConfigDict, ValidationError, WithJsonSchema, model_validator

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http import problems
from clipfleet.api.http.bodies import reservation
from clipfleet.api.http.disconnect import WHILE_CONNECTED
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.search.exact import ask_aside, require_few
from clipfleet.api.search.terms import Given, Picture, load_terms, needs_model, parse_terms
from clipfleet.common.collection import BUILTIN_FIELDS, RESERVED, Collection
from clipfleet.common.errors import (
    ClipfleetError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unavailable,
)
from clipfleet.common.http.schemas import Problem, SearchOptions, SearchOut
from clipfleet.common.http.search import Refused, SearchBatchIn, SearchBatchOut, SearchIn
from clipfleet.common.identity import namespace_problem, text_problem
from clipfleet.common.queue.messages import Query, Search
from clipfleet.common.queue.packed import PackedAnswer
from clipfleet.common.store.filters import parse_filter

router = APIRouter(
    prefix="/v1/collections/{name}/search",
    tags=["search"],
    responses=RESPONSES,
    dependencies=[WHILE_CONNECTED],
    route_class=AuthorizedRoute,
)

LARGE_AT_ONCE = 4  # queries for many matches that wait for a worker, of one request


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


@router.post("", response_model=SearchOut)
@needs("read", body="search")
async def search(body: SearchIn, collection: CollectionDep, gateway: GatewayDep) -> Response:
    """The images nearest to the query, nearest first."""
    return _json(await _search(body, collection, gateway, _Request(gateway)))


@router.post("/image", response_model=SearchOut)
@needs("read", body="picture")
async def search_by_upload(
    form: Annotated[UploadedImage, File()], collection: CollectionDep, gateway: GatewayDep
) -> Response:
    """The images nearest to an uploaded one."""
    limit = min(gateway.settings.limits.image_bytes, gateway.settings.limits.inline_bytes)
    if (form.file.size or 0) > limit:
        raise TooLarge(f"the image has {form.file.size} bytes; the limit is {limit}")
    given = [Picture(await form.file.read())]
    return _json(await _run(given, form, collection, gateway, _Request(gateway)))


@router.post("/batch", response_model=SearchBatchOut)
@needs("read", body="batch")
async def search_batch(
    body: SearchBatchIn, collection: CollectionDep, gateway: GatewayDep, request: Request
) -> Response:
    """Up to 64 queries at once. One that cannot be answered has a `problem` in its place."""
    began = time.perf_counter()
    queries = [_checked(raw) for raw in body.queries]
    _check_images(queries, gateway)
    of_all = _Request(gateway)
    asked = (_one_of_many(query, collection, gateway, of_all) for query in queries)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    away = [one for one in answers if isinstance(one, Unavailable)]
    if len(away) == len(answers):
        raise away[0]
    results = (
        one if isinstance(one, bytes) else _refused(problems.problem_for(request.scope, one))
        for one in answers
    )
    took = json.dumps(_ms_since(began)).encode()
    return _json(b'{"results":[%b],"took_ms":%b}' % (b",".join(results), took))


def _refused(problem: Problem) -> bytes:
    return Refused(problem=problem).model_dump_json().encode()


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


class _Request:
    """What the queries of one request share: fetches of images at once, large searches at once, and
    the bytes of the answers."""

    def __init__(self, gateway: Gateway) -> None:
        self.turns = asyncio.Semaphore(gateway.settings.fetch.queries)
        self.large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._most = gateway.settings.limits.answer_bytes
        self._answered, self._full = 0, False

    def require_room(self) -> None:
        """TooLarge when the answers have too many bytes already."""
        if self._full:
            raise TooLarge(
                f"the answers to this request have more than {self._most} bytes "
                "(CLIPFLEET_LIMITS__ANSWER_BYTES): lower top_k, ask fewer queries at once, or "
                "leave out include_metadata or include_values"
            )

    def add(self, answer: PackedAnswer) -> None:
        """TooLarge, likewise; Overfull when the gateway holds too many answers."""
        self._full = self._full or self._answered + len(answer.json) > self._most
        self.require_room()
        reservation().add(len(answer.json))
        self._answered += len(answer.json)


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
    of_all: _Request,
) -> bytes:
    if isinstance(query, ValidationError):
        raise query
    return await _search(query, collection, gateway, of_all)


async def _search(
    body: SearchIn, collection: Collection, gateway: Gateway, of_all: _Request
) -> bytes:
    given = parse_terms(body, collection, gateway)
    return await _run(given, body, collection, gateway, of_all)


async def _run(
    given: Sequence[Given],
    body: SearchOptions,
    collection: Collection,
    gateway: Gateway,
    of_all: _Request,
) -> bytes:
    """The answer as JSON."""
    began = time.perf_counter()
    _check_options(body, collection, gateway)
    worker = await gateway.worker("query", collection.model, any_model=not needs_model(given))
    terms = await load_terms(given, worker, gateway, of_all.turns)
    search = Search(
        collection=collection,
        candidates=gateway.settings.limits.candidates,
        answer_bytes=gateway.settings.limits.answer_bytes,
        **{name: getattr(body, name) for name in SearchOptions.model_fields},
    )
    answer = await _ask(Query(terms=terms, search=search), worker.model, gateway, of_all)
    took = json.dumps(_ms_since(began)).encode()
    return b'{"matches":%b,"took_ms":%b}' % (answer.json, took)


async def _ask(query: Query, model: str, gateway: Gateway, of_all: _Request) -> PackedAnswer:
    """The error that a worker answers with comes out."""
    assert query.search is not None
    if query.search.exact:
        await require_few(query.search, gateway)
        answer = await ask_aside(query, model, gateway, gateway.exact)
    elif query.large:
        async with of_all.large:
            of_all.require_room()
            answer = await ask_aside(query, model, gateway, gateway.large)
    else:
        answer = await gateway.queries.ask(query, model)
    if answer.error:
        gateway.forget(query.search.collection.name)
        raise refusal(answer)
    of_all.add(answer)
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


def refusal(answer: PackedAnswer) -> ClipfleetError:
    """The error that a worker answered with."""
    kinds: dict[str, type[ClipfleetError]] = {
        "not-found": NotFound,
        "invalid-request": InvalidRequest,
        "too-large": TooLarge,
        "unavailable": Unavailable,
    }
    return kinds.get(answer.error, ClipfleetError)(answer.detail)
