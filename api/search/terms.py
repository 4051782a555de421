"""The terms of a query: checked before a worker is asked, and made ready for it."""

import asyncio
import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

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
from clipfleet.common.store import Vectors

PIECE = 1 << 20  # characters of base64, a multiple of four
MAX_NUMBER = 1e15  # of a vector; its square, summed up, still fits 32 bits
MIN_LENGTH = 1e-15  # of a vector to compare by cosine; its square still fits 32 bits


@dataclass(frozen=True)
class ImageUrl:
    """An image that is not downloaded yet."""

    url: str


@dataclass(frozen=True)
class Base64:
    """An image that is not decoded from base64 yet."""

    text: str


ImageInput = bytes | ImageUrl | Base64


@dataclass(frozen=True)
class ImageTerm:
    """A term whose image is not decoded yet.

    Attributes:
        image: the bytes of the image, or where they come from.
        weight: how much the term counts.
        prefix: begins the message of an error about this term, such as "terms[2]."; "" for the
            only term of a query.
    """

    image: ImageInput
    weight: float = 1.0
    prefix: str = ""


QueryTerm = Term | ImageTerm


class QueryTerms:
    """The terms of one query: `parse` checks them, `load` makes them ready for a worker.

    Args:
        terms: terms that are checked already.
    """

    def __init__(self, terms: Sequence[QueryTerm]) -> None:
        self._terms = terms

    @classmethod
    def parse(cls, body: SearchIn, collection: Collection, gateway: Gateway) -> Self:
        """Check the terms of a request.

        Args:
            body: the request.
            collection: the collection to search.
            gateway: has the limits.

        Raises:
            InvalidRequest: a term is not valid; the message names the term.
        """
        if body.terms is None:
            return cls([_parse_term(body, 1.0, "", collection, gateway)])
        limit = gateway.settings.limits.query_terms
        if len(body.terms) > limit:
            raise InvalidRequest(f"there are {len(body.terms)} terms; the limit is {limit}")
        if not any(term.weight for term in body.terms):
            raise InvalidRequest("all terms have the weight 0; give at least one another weight")
        return cls(
            [
                _parse_term(term, term.weight, f"terms[{n}].", collection, gateway)
                for n, term in enumerate(body.terms)
            ]
        )

    @property
    def needs_model(self) -> bool:
        """Whether a worker has to embed a term."""
        return any(isinstance(term, ImageTerm) or term.kind == "text" for term in self._terms)

    async def load(
        self, worker: WorkerCard, gateway: Gateway, slots: asyncio.Semaphore
    ) -> tuple[Term, ...]:
        """Fetch and decode every image, and store it where workers find it.

        Args:
            worker: the worker whose model the images are prepared for.
            gateway: fetches, decodes and stores the images.
            slots: limits the images at once, so that one request does not use all threads.

        Raises:
            InvalidRequest: an image cannot be fetched or used; the message names its term.
        """
        return tuple(
            await asyncio.gather(
                *(_load_term(term, worker, gateway, slots) for term in self._terms)
            )
        )


def _parse_term(
    term: QueryInput, weight: float, prefix: str, collection: Collection, gateway: Gateway
) -> QueryTerm:
    try:
        if term.image is not None:
            return ImageTerm(image_input(term.image), weight, prefix)
        if term.text is not None:
            check_text(term.text, gateway)
            return Term(kind="text", value=term.text, weight=weight)
        if term.id is not None:
            if problem := id_problem(term.id):
                raise InvalidRequest(problem)
            return Term(kind="id", value=term.id, weight=weight)
        vector = term.vector or []
        check_vector(vector, collection)
        return Term(kind="vector", value=tuple(vector), weight=weight)
    except InvalidRequest as error:
        raise InvalidRequest(prefix + error.detail) from error


async def _load_term(
    term: QueryTerm, worker: WorkerCard, gateway: Gateway, slots: asyncio.Semaphore
) -> Term:
    if isinstance(term, Term):
        return term
    try:
        async with slots:
            loaded = await load_image_term(term.image, worker, gateway)
    except Unreadable as error:
        raise InvalidRequest(f"{term.prefix}image.url: {error}") from error
    except InvalidRequest as error:
        raise type(error)(term.prefix + error.detail) from error
    return loaded.model_copy(update={"weight": term.weight})


async def load_image_term(image: ImageInput, worker: WorkerCard, gateway: Gateway) -> Term:
    """Fetch and decode an image, store its pixels for the workers, and return a term that names it.

    Raises:
        Unreadable: the image cannot be fetched.
        BadImage: the bytes are not a usable image.
        InvalidRequest: the text is not base64.
    """
    if isinstance(image, ImageUrl):
        async with gateway.urls.image(image.url) as data:
            return await load_image_term(data, worker, gateway)
    pixels = await gateway.decode(_pixels, image, worker.preprocess, gateway)
    return Term(kind="image", value=await gateway.stash_query_image(pixels))


def _pixels(image: bytes | Base64, spec: Preprocess, gateway: Gateway) -> Pixels:
    data = from_base64(image.text) if isinstance(image, Base64) else image
    limits, edge = gateway.settings.limits, spec.edge()
    return spec.apply(decode(data, limits, edge=edge, in_memory=limits.query_pixels).image)


def check_text(text: str, gateway: Gateway) -> None:
    """Raise InvalidRequest for a text that is too long or is not valid Unicode."""
    limit = gateway.settings.limits.text_chars
    if len(text) > limit:
        raise InvalidRequest(f"the text has {len(text)} characters; the limit is {limit}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("the text is not valid Unicode") from error


def check_vector(vector: Sequence[float], collection: Collection) -> Vectors:
    """Convert a vector to the 32-bit numbers that are stored and compared.

    Args:
        vector: finite numbers.
        collection: whose vectors it is compared with.

    Raises:
        InvalidRequest: the vector cannot be compared with those of the collection.
    """
    if len(vector) != collection.dim:
        raise InvalidRequest(
            f"the vector has {len(vector)} numbers, those of collection {collection.name!r} "
            f"have {collection.dim}"
        )
    doubles = np.asarray(vector, np.float64)
    if np.abs(doubles).max() > MAX_NUMBER:
        raise InvalidRequest(f"a number of the vector is over {MAX_NUMBER:g}")
    converted = doubles.astype(np.float32)
    if collection.metric != "cosine":
        return converted
    if not converted.any():
        raise InvalidRequest("a vector of zeros has no direction to compare by cosine")
    if np.linalg.norm(converted.astype(np.float64)) < MIN_LENGTH:
        raise InvalidRequest(
            f"the vector is shorter than {MIN_LENGTH:g}: it has no direction to compare by cosine"
        )
    return converted


def image_input(image: QueryImage) -> ImageInput:
    """Return the image of a request, which is a URL or base64."""
    return ImageUrl(image.url) if image.url is not None else Base64(image.base64 or "")


def from_base64(text: str) -> bytes:
    """Decode base64, also of a data URI, with line breaks, for URLs, or without padding.

    It is decoded in pieces: one call for the whole text would block the event loop from its thread.
    """
    start = text.find(",") + 1 if text[:5].lower() == "data:" else 0
    try:
        return b"".join(_decoded_pieces(text, start))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("the base64 of an image is not valid") from error


def _decoded_pieces(text: str, start: int) -> Iterator[bytes]:
    rest, has_ended = b"", False
    for at in range(start, len(text), PIECE):
        piece = text[at : at + PIECE].encode("ascii").translate(_PLAIN_BASE64, _BLANKS)
        data = rest + piece
        if has_ended or b"=" in data:
            stem = data.rstrip(b"=")
            if b"=" in stem or (has_ended and stem != rest):
                raise ValueError("it continues after its padding")
            rest, has_ended = stem, True
        else:
            whole = len(data) // 4 * 4
            yield base64.b64decode(data[:whole], validate=True)
            rest = data[whole:]
    yield base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)


_PLAIN_BASE64 = bytes.maketrans(b"-_", b"+/")
_BLANKS = b" \t\r\n"
