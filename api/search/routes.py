"""Routes that search by text, image, id or vector, or by a mix of them, alone or in a batch.

The matches are sent as the worker wrote them: the gateway does not parse an answer.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Request, Response, UploadFile
from pydantic import BeforeValidator, ConfigDict, ValidationError, WithJsonSchema, model_validator

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CollectionDep, GatewayDep, Renewal, RenewalDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.replies import error_of
from clipfleet.api.http import problems
from clipfleet.api.http.bodies import MemoryFull, reservation
from clipfleet.api.http.disconnect import WHILE_CONNECTED
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.search.exact import check_exact_rows, embed_and_ask
from clipfleet.api.search.terms import ImageTerm, QueryTerms
from clipfleet.api.search.timing import DOCUMENTED, Timing, longest, timed_response
from clipfleet.common.collection import BUILTIN_FIELDS, ELEMENTS, RESERVED, Collection
from clipfleet.common.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from clipfleet.common.http.schemas import Problem, SearchOptions, SearchOut
from clipfleet.common.http.search import Refused, SearchBatchIn, SearchBatchOut, SearchIn
from clipfleet.common.identity import namespace_problem, text_problem
from clipfleet.common.queue.messages import Query, Search
from clipfleet.common.queue.packed import PackedAnswer
from clipfleet.common.store.filters import Filter, parse_filter

router = APIRouter(
    prefix="/v1/collections/{name}/search",
    tags=["search"],
    responses=RESPONSES,
    dependencies=[WHILE_CONNECTED],
    route_class=AuthorizedRoute,
)

MAX_PARTS = 4  # into which the bytes of an answer are divided between the queries of a batch
LARGE_AT_ONCE = 4  # queries for many matches of one request that wait for a worker at once


def _parse_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ValueError("filter is not JSON") from error


class UploadedImage(SearchOptions):
    """A form with an image and the options of a search. All options of a form are text."""

    model_config = ConfigDict(strict=False)

    file: UploadFile
    filter: Annotated[
        dict[str, Any] | None,
        BeforeValidator(_parse_json),
        WithJsonSchema({"type": "string", "description": "A metadata filter as JSON."}),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, form: Any) -> Any:
        return {name: value for name, value in form.items() if value != ""}


@router.post("", summary="Search a collection", response_model=SearchOut, responses=DOCUMENTED)
@needs("read", body="search")
async def search(
    body: SearchIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    renewal: RenewalDep,
    request: Request,
) -> Response:
    """Return the images nearest to the query, nearest first."""
    timing = Timing()
    terms = QueryTerms.parse(body, collection, gateway)
    shared = _SharedLimits(gateway, renewal)
    content = await _search(terms, body, collection, gateway, shared, timing)
    return timed_response(content, timing, request)


@router.post(
    "/image",
    summary="Search by an uploaded image",
    response_model=SearchOut,
    responses=DOCUMENTED,
)
@needs("read", body="picture")
async def search_by_upload(
    form: Annotated[UploadedImage, File()],
    collection: CollectionDep,
    gateway: GatewayDep,
    renewal: RenewalDep,
    request: Request,
) -> Response:
    """Return the images nearest to an uploaded image, nearest first."""
    timing = Timing()
    limit = min(gateway.settings.limits.image_bytes, gateway.settings.limits.inline_bytes)
    if (form.file.size or 0) > limit:
        raise TooLarge(f"the image has {form.file.size} bytes; the limit is {limit}")
    terms = QueryTerms([ImageTerm(await form.file.read())])
    shared = _SharedLimits(gateway, renewal)
    content = await _search(terms, form, collection, gateway, shared, timing)
    return timed_response(content, timing, request)


@router.post(
    "/batch",
    summary="Run several searches",
    response_model=SearchBatchOut,
    responses=DOCUMENTED,
)
@needs("read", body="batch")
async def search_batch(
    body: SearchBatchIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    renewal: RenewalDep,
    request: Request,
) -> Response:
    """Answer up to 64 queries at once. A query that cannot be answered has a `problem` instead.

    The response is 503 when no query can be answered because a part is unavailable.

    `Server-Timing` has the stages of the query that took longest, and the total of the request.
    """
    timing = Timing()
    queries = [_validate_query(raw) for raw in body.queries]
    _check_images(queries, gateway)
    shared = _SharedLimits(gateway, renewal, len(queries))
    timings = [Timing() for _ in queries]
    searches = (
        _search_in_batch(query, collection, gateway, shared, own)
        for query, own in zip(queries, timings, strict=True)
    )
    answers = await asyncio.gather(*searches, return_exceptions=True)
    outages = [answer for answer in answers if isinstance(answer, Unavailable)]
    if len(outages) == len(answers):
        raise outages[0]
    results = (
        answer
        if isinstance(answer, bytes)
        else _refused_json(problems.problem_for(request.scope, answer))
        for answer in answers
    )
    content = b'{"results":[%b],"took_ms":%b}' % (b",".join(results), _milliseconds(timing))
    timing.stages = longest(timings)
    return timed_response(content, timing, request)


def _refused_json(problem: Problem) -> bytes:
    return Refused(problem=problem).model_dump_json().encode()


class _SharedLimits:
    """Limits that all queries of one request share.

    Args:
        gateway: has the settings.
        renewal: looks the collection up again.
        queries: the number of queries.

    Attributes:
        renewal: looks the collection up again.
        queries: the number of queries.
        answer_bytes: the size of the answer to one query at most, so that no query of a batch
            takes the room of all others.
        fetch_slots: images that are fetched at once.
        large_slots: searches for many matches at once.
    """

    def __init__(self, gateway: Gateway, renewal: Renewal, queries: int = 1) -> None:
        self.renewal, self.queries = renewal, queries
        self.answer_bytes = gateway.settings.limits.answer_bytes // min(queries, MAX_PARTS)
        self.fetch_slots = asyncio.Semaphore(gateway.settings.fetch.queries)
        self.large_slots = asyncio.Semaphore(LARGE_AT_ONCE)
        self._max_bytes = gateway.settings.limits.answer_bytes
        self._answer_bytes = 0
        self._refusal: TooLarge | MemoryFull | None = None

    def require_room(self) -> None:
        """Raise what refused an answer before: the next ones would be refused, too."""
        if self._refusal:
            raise self._refusal

    def add(self, answer: PackedAnswer) -> None:
        """Count the bytes of an answer.

        Raises:
            TooLarge: the answers to this request have too many bytes.
            MemoryFull: the answers to all requests fill the gateway's memory budget.
        """
        self.require_room()
        try:
            if self._answer_bytes + len(answer.json) > self._max_bytes:
                raise TooLarge(
                    f"the answers to this request have more than {self._max_bytes} bytes "
                    "(CLIPFLEET_LIMITS__ANSWER_BYTES): lower top_k, send fewer queries at once, or "
                    "leave out include_metadata or include_values"
                )
            reservation().add(len(answer.json))
        except (TooLarge, MemoryFull) as error:
            self._refusal = error
            raise
        self._answer_bytes += len(answer.json)


def _validate_query(raw: Any) -> SearchIn | ValidationError:
    try:
        return SearchIn.model_validate(raw)
    except ValidationError as error:
        return error


def _check_images(queries: Sequence[SearchIn | ValidationError], gateway: Gateway) -> None:
    limit = gateway.settings.limits.embeds
    valid = [query for query in queries if isinstance(query, SearchIn)]
    images = sum(
        term.image is not None for query in valid for term in (query, *(query.terms or ()))
    )
    if images > limit:
        raise TooLarge(f"there are {images} images in one request; the limit is {limit}")


async def _search_in_batch(
    query: SearchIn | ValidationError,
    collection: Collection,
    gateway: Gateway,
    shared: _SharedLimits,
    timing: Timing,
) -> bytes:
    if isinstance(query, ValidationError):
        raise query
    terms = QueryTerms.parse(query, collection, gateway)
    return await _search(terms, query, collection, gateway, shared, timing)


async def _search(
    query_terms: QueryTerms,
    body: SearchOptions,
    collection: Collection,
    gateway: Gateway,
    shared: _SharedLimits,
    timing: Timing,
) -> bytes:
    """Return the answer as JSON, and set the stages of its timing."""
    where = _check_options(body, collection, gateway)
    any_model = not query_terms.needs_model
    worker = await gateway.worker("query", collection.model, any_model=any_model)
    terms = await query_terms.load(worker, gateway, shared.fetch_slots)
    search = Search(
        collection=collection,
        candidates=gateway.settings.limits.candidates,
        answer_bytes=shared.answer_bytes,
        confidence=True,
        **{name: getattr(body, name) for name in SearchOptions.model_fields},
    )
    try:
        if body.exact:
            await check_exact_rows(collection, body.namespace, where, gateway)
        asked_s = timing.seconds()
        answer = await _ask(Query(terms=terms, search=search), worker.model, gateway, shared)
    except NotFound:
        current = await shared.renewal.of(collection)
        if current.generation == collection.generation:
            raise
        # Another gateway has deleted the collection and created it again, or has moved the alias
        # by which it was named.
        if current.name != collection.name and (
            shared.queries > 1 or current.dim != collection.dim
        ):
            raise Unavailable("the alias was moved meanwhile; send the request again", 1) from None
        return await _search(query_terms, body, current, gateway, shared, timing)
    timing.answered(timing.seconds() - asked_s, answer.times)
    truncated = json.dumps(answer.truncated or None).encode()
    cut_texts = json.dumps(answer.truncated_texts).encode()
    origin = json.dumps({"generation": collection.generation, "model": collection.model}).encode()
    sure = json.dumps(
        {"no_match": answer.no_match, "no_confidence": answer.no_confidence or None}
    ).encode()
    fields = (answer.json, _milliseconds(timing), truncated, cut_texts, sure[1:-1], origin[1:-1])
    return b'{"matches":%b,"took_ms":%b,"truncated":%b,"truncated_texts":%b,%b,%b}' % fields


async def _ask(query: Query, model: str, gateway: Gateway, shared: _SharedLimits) -> PackedAnswer:
    """Send a query to the queue of its kind, and raise the error that a worker answers with."""
    assert query.search is not None
    if query.search.exact:
        answer = await embed_and_ask(query, model, gateway, gateway.exact)
    elif query.large:
        async with shared.large_slots:
            shared.require_room()
            answer = await embed_and_ask(query, model, gateway, gateway.large)
    else:
        answer = await gateway.queries.ask(query, model)
    if answer.error:
        raise error_of(answer)
    shared.add(answer)
    return answer


def _milliseconds(timing: Timing) -> bytes:
    return json.dumps(round(1e3 * timing.seconds(), 2)).encode()


def _check_options(body: SearchOptions, collection: Collection, gateway: Gateway) -> Filter | None:
    """Return the parsed filter; raise InvalidRequest for options that are not valid."""
    limits = gateway.settings.limits
    if problem := namespace_problem(body.namespace):
        raise InvalidRequest(problem)
    if body.top_k > limits.top_k:
        raise InvalidRequest(f"top_k is {body.top_k}; the limit is {limits.top_k}", field="top_k")
    if body.offset + body.top_k > limits.window:
        raise InvalidRequest(f"offset + top_k is over the limit of {limits.window}", field="offset")
    if body.min_score is not None and collection.metric == "euclidean":
        raise InvalidRequest(
            "min_score needs a similarity; euclidean scores are distances", field="min_score"
        )
    if body.include_values and body.top_k * collection.dim > limits.values:
        max_top_k = limits.values // collection.dim
        raise InvalidRequest(
            f"with include_values, top_k is at most {max_top_k} here", field="top_k"
        )
    _check_grouping(body, collection, gateway)
    return parse_filter(body.filter or {}, collection.fields)


def _check_grouping(body: SearchOptions, collection: Collection, gateway: Gateway) -> None:
    limit = gateway.settings.limits.candidates
    needs_candidates = body.group_by is not None or body.collapse is not None
    if needs_candidates and body.offset + body.top_k > limit:
        raise InvalidRequest(
            f"with group_by or collapse, offset + top_k is at most {limit}", field="top_k"
        )
    if body.group_by is None:
        return
    if problem := text_problem("group_by", body.group_by, 256):
        raise InvalidRequest(problem)
    if body.group_by in RESERVED - BUILTIN_FIELDS.keys():
        raise InvalidRequest(f"{body.group_by!r} is not a field to group by", field="group_by")
    if (kind := collection.fields.get(body.group_by)) in ELEMENTS:
        raise InvalidRequest(
            f"lists form no groups, and {body.group_by!r} is {kind}", field="group_by"
        )
