"""Routes in the shape of OpenAI's API: embeddings and the list of models.

Programs that use OpenAI's clients, or others of that shape, need only another base URL.
"""

import asyncio
import base64
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request, Response
from numpy.typing import NDArray

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.replies import error_of
from clipfleet.api.http.bodies import reservation
from clipfleet.api.http.disconnect import WHILE_CONNECTED
from clipfleet.api.http.openai_errors import RESPONSES
from clipfleet.api.search.terms import Base64, ImageInput, ImageUrl, check_text, load_image_term
from clipfleet.api.search.timing import DOCUMENTED, Timing, timed_response
from clipfleet.common.errors import (
    ClipfleetError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unreadable,
)
from clipfleet.common.http.openai import EmbeddingsIn, EmbeddingsOut, Modality, ModelOut, ModelsOut
from clipfleet.common.queue.fleet import NoWorker, WorkerCard
from clipfleet.common.queue.messages import Query, Term

router = APIRouter(prefix="/v1", tags=["embed"], responses=RESPONSES, route_class=AuthorizedRoute)

Input = str | ImageInput  # a text, or an image
URL_CHARS = 8_192
_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_IMAGE_URI = re.compile(r"data:image/[^,\s]*,", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_TOKEN = re.compile(r"\w+|[^\w\s]")
AS_TEXT = '; to embed it as a text, send "modality": "text"'
TOKENS = (
    "input has token ids, which belong to the tokenizer of another model; send texts. LangChain: "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)"
)
FORMS = (
    'it must be a text, {"type": "text", "text": ...} or '
    '{"type": "image_url", "image_url": {"url": ...}}'
)


class UnknownModel(NotFound):
    """No worker serves the model, and no collection uses it."""

    slug = "model-not-found"
    title = "There is no such model"


@router.post(
    "/embeddings",
    summary="Embed texts and images (OpenAI's shape)",
    response_model=EmbeddingsOut,
    responses=DOCUMENTED,
    dependencies=[WHILE_CONNECTED],
)
@needs("read", body="batch")
async def create_embeddings(body: EmbeddingsIn, gateway: GatewayDep, request: Request) -> Response:
    """Return the embeddings of texts and images, for clients that speak OpenAI's API.

    A string of `input` is a text. If all of it is a data URI of an image (`data:image/…;base64,…`)
    or an http(s) URL, it is an image, unless `modality` is `text`. Errors have OpenAI's shape.
    """
    timing = Timing()
    inputs = parse_inputs(body.input, body.modality)
    _check_inputs(inputs, gateway)
    worker = await _worker(body.model, gateway)
    if body.dimensions not in (None, worker.dim):
        raise InvalidRequest(
            f"the embeddings of model {worker.model!r} have {worker.dim} numbers; "
            f"dimensions cannot be {body.dimensions}",
            param="dimensions",
        )
    hint = AS_TEXT if body.modality == "auto" else ""
    rows = await _embed(inputs, hint, worker, gateway, timing)
    tokens = sum(len(_TOKEN.findall(text)) for text in inputs if isinstance(text, str))
    as_base64 = body.encoding_format == "base64"
    content = await gateway.parse(_answer, rows, as_base64, worker.model, tokens)
    reservation().add(len(content))
    return timed_response(content, timing, request)


@router.get("/models", summary="List models (OpenAI's shape)")
@needs("read")
async def list_models(gateway: GatewayDep) -> ModelsOut:
    """Return the models that workers serve for queries, that of the service first."""
    return ModelsOut(data=await _models(gateway))


@router.get("/models/{model:path}", summary="Get a model (OpenAI's shape)")
@needs("read")
async def get_model(
    model: Annotated[str, Path(max_length=512, description="Name of the model.")],
    gateway: GatewayDep,
) -> ModelOut:
    """Return a model that workers serve for queries."""
    models = await _models(gateway)
    for served in models:
        if served.id == model:
            return served
    raise _unknown(model, [served.id for served in models])


def parse_inputs(value: Any, modality: Modality) -> list[Input]:
    """Return the texts and images of a request's `input`.

    Args:
        value: the JSON value of `input`.
        modality: what a string is.

    Raises:
        InvalidRequest: a part of it is neither a text nor an image; `param` names the part.
    """
    if not isinstance(value, list):
        return [_parse_input(value, modality, "input")]
    if not value:
        raise InvalidRequest("input is an empty list; give at least one text", param="input")
    if any(isinstance(item, int | float) or _is_list_of_numbers(item) for item in value):
        raise InvalidRequest(TOKENS, param="input")
    return [_parse_input(item, modality, f"input[{n}]") for n, item in enumerate(value)]


def _is_list_of_numbers(item: Any) -> bool:
    return isinstance(item, list) and all(isinstance(part, int | float) for part in item)


def _parse_input(item: Any, modality: Modality, where: str) -> Input:
    match item:
        case str() if modality == "image":
            return _image(item, where)
        case str() if modality == "text" or not (_URL.fullmatch(item) or _IMAGE_URI.match(item)):
            return _text(item, where)
        case str():
            return _image(item, where)
        case {"type": "text", "text": str() as text, **others} if not others:
            return _text(text, where)
        case {"type": "image_url", "image_url": {"url": str() as url, **others}, **more} if (
            others.keys() <= {"detail"} and not more
        ):
            return _image(url, where)
        case {"type": "image_url", "image_url": str() as url, **others} if not others:
            return _image(url, where)
    raise InvalidRequest(f"{where} cannot be embedded: {FORMS}", param=where)


def _text(text: str, where: str) -> str:
    if not text:
        raise InvalidRequest(f"{where} is an empty text", param=where)
    return text


def _image(text: str, where: str) -> ImageInput:
    if _DATA_URI.match(text):
        return Base64(text)
    if not _URL.fullmatch(text):
        kind = "a data URI without base64" if _IMAGE_URI.match(text) else "no image"
        raise InvalidRequest(
            f"{where} is {kind}: give a data URI (data:image/jpeg;base64,...) or an http(s) URL",
            param=where,
        )
    if len(text) > URL_CHARS:
        raise InvalidRequest(
            f"{where} is a URL of {len(text)} characters; the limit is {URL_CHARS}", param=where
        )
    return ImageUrl(text)


def _check_inputs(inputs: Sequence[Input], gateway: Gateway) -> None:
    limits = gateway.settings.limits
    images = sum(not isinstance(item, str) for item in inputs)
    for count, limit, kind, setting in (
        (len(inputs), limits.embedding_inputs, "inputs", "EMBEDDING_INPUTS"),
        (images, limits.embeds, "images", "EMBEDS"),
    ):
        if count > limit:
            raise TooLarge(
                f"the request has {count} {kind}; the limit is {limit} "
                f"(CLIPFLEET_LIMITS__{setting})",
                param="input",
            )
    for n, item in enumerate(inputs):
        if isinstance(item, str):
            try:
                check_text(item, gateway)
            except InvalidRequest as error:
                raise InvalidRequest(f"input[{n}]: {error.detail}", param=f"input[{n}]") from error


async def _worker(model: str | None, gateway: Gateway) -> WorkerCard:
    """Return a worker of the model; None: that of the service.

    Raises:
        UnknownModel: no worker serves it, and no part of the service uses it.
        NoWorker: its workers are away.
    """
    own = gateway.settings.model
    try:
        return await gateway.worker("query", model or own)
    except NoWorker:
        if model is None or model == own:
            raise
        collections = await gateway.call(gateway.catalogue.all)
        if any(collection.model == model for collection in collections):
            raise
        raise _unknown(model, [served.id for served in await _models(gateway)]) from None


async def _models(gateway: Gateway) -> list[ModelOut]:
    started_at: dict[str, float] = {}
    for card in await gateway.query_workers():
        started_at[card.model] = min(card.started_at, started_at.get(card.model, card.started_at))
    own = gateway.settings.model
    names = sorted(started_at, key=lambda name: (name != own, name))
    return [ModelOut(id=name, created=int(started_at[name])) for name in names]


def _unknown(model: str, served: Sequence[str]) -> UnknownModel:
    names = ", ".join(served) or "none at the moment"
    return UnknownModel(f"there is no model {model[:200]!r}; workers serve: {names}", param="model")


async def _embed(
    inputs: Sequence[Input], hint: str, worker: WorkerCard, gateway: Gateway, timing: Timing
) -> NDArray[np.float32]:
    """Embed the inputs, a group at a time, so that one request does not fill the queue.

    Args:
        hint: ends the message about an image that cannot be fetched.
    """
    rows: list[Sequence[float]] = []
    waited_s, times = 0.0, [0, 0, 0]
    size = max(1, min(gateway.settings.limits.embeds, gateway.settings.limits.query_batch))
    for first in range(0, len(inputs), size):
        terms = await _load(inputs[first : first + size], first, hint, worker, gateway)
        asked_s = timing.seconds()
        answers = await asyncio.gather(
            *(gateway.queries.ask(Query.of(term), worker.model) for term in terms)
        )
        waited_s += timing.seconds() - asked_s
        longest = max((answer.times for answer in answers), key=sum)
        times = [before + more for before, more in zip(times, longest or times, strict=False)]
        for answer in answers:
            if answer.error:
                raise error_of(answer)
            rows.append(answer.embedding)
    timing.answered(waited_s, times if any(times) else (), searched=False)
    numbers = np.asarray(rows, np.float32)
    if not np.isfinite(numbers).all():
        raise ClipfleetError(f"model {worker.model!r} returned numbers that are not finite")
    return numbers


async def _load(
    inputs: Sequence[Input], first: int, hint: str, worker: WorkerCard, gateway: Gateway
) -> list[Term]:
    """Make a group of inputs ready for the worker; its images a few at once."""
    slots = asyncio.Semaphore(gateway.settings.fetch.queries)

    async def load(n: int, item: Input) -> Term:
        if isinstance(item, str):
            return Term(kind="text", value=item)
        where = f"input[{n}]"
        try:
            async with slots:
                return await load_image_term(item, worker, gateway)
        except Unreadable as error:
            raise InvalidRequest(f"{where}: {error}{hint}", param=where) from error
        except InvalidRequest as error:
            detail = f"{where}: {error.detail}{hint}"
            raise type(error)(detail, param=where) from error

    return list(await asyncio.gather(*(load(n, item) for n, item in enumerate(inputs, first))))


def _answer(rows: NDArray[np.float32], as_base64: bool, model: str, tokens: int) -> bytes:
    """The answer as JSON. Each row is written by itself: other threads get their turn between."""
    data = []
    for n, row in enumerate(rows):
        if as_base64:
            embedding: Any = base64.b64encode(row.astype("<f4").tobytes()).decode()
        else:
            embedding = row.tolist()
        data.append(json.dumps({"object": "embedding", "index": n, "embedding": embedding}))
    usage = json.dumps({"prompt_tokens": tokens, "total_tokens": tokens})
    return (
        f'{{"object":"list","data":[{",".join(data)}],"model":{json.dumps(model)},"usage":{usage}}}'
    ).encode()
