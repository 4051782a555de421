"""What is searched with, checked before it costs a worker, and made ready for one."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest, Unreadable
from clipfleet.common.http.schemas import QueryImage
from clipfleet.common.http.search import QueryInput, SearchIn
from clipfleet.common.identity import id_problem
from clipfleet.common.imaging.decode import decode
from clipfleet.common.imaging.preprocess import Pixels, Preprocess
from clipfleet.common.queue.fleet import WorkerCard
from clipfleet.common.queue.messages import Term

PIECE = 1 << 20  # characters of base64, a multiple of four
LARGEST_VALUE = 1e15  # squared and summed it still fits 32 bits


@dataclass(frozen=True)
class ImageUrl:
    """An image that is yet to be fetched."""

    url: str


@dataclass(frozen=True)
class Base64:
    """An image that is yet to be decoded from its text."""

    text: str


ImageInput = bytes | ImageUrl | Base64


@dataclass(frozen=True)
class Picture:
    """A term whose image is yet to be decoded. `where`: in the request, for what is said of it."""

    image: ImageInput
    weight: float = 1.0
    where: str = ""


Given = Term | Picture


def parse_terms(body: SearchIn, collection: Collection, gateway: Gateway) -> list[Given]:
    """InvalidRequest, which names the term, for what cannot be searched with."""
    if body.terms is None:
        return [_given(body, 1.0, "", collection, gateway)]
    most = gateway.settings.limits.query_terms
    if len(body.terms) > most:
        raise InvalidRequest(f"there are {len(body.terms)} terms; the limit is {most}")
    if not any(term.weight for term in body.terms):
        raise InvalidRequest("all terms weigh 0: give at least one another weight")
    return [
        _given(term, term.weight, f"terms[{n}].", collection, gateway)
        for n, term in enumerate(body.terms)
    ]


def _given(
    asked: QueryInput, weight: float, where: str, collection: Collection, gateway: Gateway
) -> Given:
    try:
        if asked.image is not None:
            return Picture(an_image(asked.image), weight, where)
        return _term(asked, weight, collection, gateway)
    except InvalidRequest as error:
        raise InvalidRequest(where + error.detail) from error


def _term(asked: QueryInput, weight: float, collection: Collection, gateway: Gateway) -> Term:
    if asked.text is not None:
        check_text(asked.text, gateway)
        return Term(kind="text", value=asked.text, weight=weight)
    if asked.id is not None:
        if problem := id_problem(asked.id):
            raise InvalidRequest(problem)
        return Term(kind="id", value=asked.id, weight=weight)
    vector = asked.vector or []
    check_vector(vector, collection)
    return Term(kind="vector", value=tuple(vector), weight=weight)


def needs_model(given: Sequence[Given]) -> bool:
    return any(isinstance(one, Picture) or one.kind == "text" for one in given)


async def load_terms(
    given: Sequence[Given], worker: WorkerCard, gateway: Gateway, turns: asyncio.Semaphore
) -> tuple[Term, ...]:
    """With every image fetched, decoded and left where workers find it. `turns`: so that one
    request with many images does not take all threads."""
    return tuple(await asyncio.gather(*(_ready(one, worker, gateway, turns) for one in given)))


async def _ready(
    given: Given, worker: WorkerCard, gateway: Gateway, turns: asyncio.Semaphore
) -> Term:
    if isinstance(given, Term):
        return given
    try:
        async with turns:
            term = await image_term(given.image, worker, gateway)
    except Unreadable as error:
        raise InvalidRequest(f"{given.where}image.url: {error}") from error
    except InvalidRequest as error:
        raise type(error)(given.where + error.detail) from error
    return term.model_copy(update={"weight": given.weight})


async def image_term(image: ImageInput, worker: WorkerCard, gateway: Gateway) -> Term:
    """Unreadable when it cannot be fetched, BadImage when it is none, InvalidRequest when it is no
    base64."""
    if isinstance(image, ImageUrl):
        async with gateway.urls.image(image.url) as data:
            return await image_term(data, worker, gateway)
    pixels = await gateway.decode(_pixels, image, worker.preprocess, gateway)
    return Term(kind="image", value=await gateway.stash_query_image(pixels))


def _pixels(image: bytes | Base64, spec: Preprocess, gateway: Gateway) -> Pixels:
    data = _from_base64(image.text) if isinstance(image, Base64) else image
    limits, edge = gateway.settings.limits, spec.edge()
    return spec.apply(decode(data, limits, edge=edge, in_memory=limits.query_pixels).image)


def check_text(text: str, gateway: Gateway) -> None:
    longest = gateway.settings.limits.text_chars
    if len(text) > longest:
        raise InvalidRequest(f"the text has {len(text)} characters; {longest} at most")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("the text is not valid Unicode") from error


def check_vector(vector: Sequence[float], collection: Collection) -> None:
    if len(vector) != collection.dim:
        raise InvalidRequest(
            f"the vector has {len(vector)} numbers, those of collection {collection.name!r} "
            f"have {collection.dim}"
        )
    if collection.metric == "cosine" and not any(vector):
        raise InvalidRequest("a vector of zeros has no direction to compare by cosine")
    if any(abs(value) > LARGEST_VALUE for value in vector):
        raise InvalidRequest(f"a number of the vector is over {LARGEST_VALUE:g}")


def an_image(given: QueryImage) -> ImageInput:
    return ImageUrl(given.url) if given.url is not None else Base64(given.base64 or "")


def _from_base64(text: str) -> bytes:
    """In pieces: a single call for all of it would hold up the event loop as if it were on it."""
    start = text.find(",") + 1 if text.startswith("data:") else 0
    try:
        return b"".join(
            base64.b64decode(text[at : at + PIECE], validate=True)
            for at in range(start, len(text), PIECE)
        )
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("an image's base64 is not base64") from error
