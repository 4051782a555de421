"""Embeddings of texts or images, for those who keep or compare vectors themselves."""

import asyncio

from fastapi import APIRouter

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.disconnect import WHILE_CONNECTED
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.search.routes import refusal
from clipfleet.api.search.terms import an_image, check_text, image_term
from clipfleet.common.errors import BadImage, InvalidRequest, TooLarge, Unreadable
from clipfleet.common.http.schemas import EmbedIn, EmbedOut, QueryImage
from clipfleet.common.queue.fleet import WorkerCard
from clipfleet.common.queue.messages import Query, Term

router = APIRouter(
    prefix="/v1/embed",
    tags=["embed"],
    responses=RESPONSES,
    dependencies=[WHILE_CONNECTED],
    route_class=AuthorizedRoute,
)


@router.post("")
@needs("read", body="batch")
async def embed(body: EmbedIn, gateway: GatewayDep) -> EmbedOut:
    """The embeddings of texts or of images, as the model of the collections makes them."""
    most = gateway.settings.limits.embeds
    if len(body.texts or body.images or ()) > most:
        raise TooLarge(f"more than {most} items in one request")
    worker = await gateway.worker("query", body.model or gateway.settings.model)
    terms = await _terms(body, worker, gateway)
    asked = (gateway.queries.ask(Query.of(term), worker.model) for term in terms)
    answers = await asyncio.gather(*asked)
    for answer in answers:
        if answer.error:
            raise refusal(answer)
    rows = [list(answer.embedding) for answer in answers]
    return EmbedOut(model=worker.model, dim=worker.dim, embeddings=rows)


async def _terms(body: EmbedIn, worker: WorkerCard, gateway: Gateway) -> list[Term]:
    for text in body.texts or ():
        check_text(text, gateway)
    texts = [Term(kind="text", value=text) for text in body.texts or ()]
    return texts or await _images(body.images or [], worker, gateway)


async def _images(given: list[QueryImage], worker: WorkerCard, gateway: Gateway) -> list[Term]:
    """A few at once, so that one request with many URLs neither takes for ever nor all turns."""
    terms: list[Term] = []
    at_once = gateway.settings.fetch.queries
    for first in range(0, len(given), at_once):
        some = enumerate(given[first : first + at_once], first)
        terms += await asyncio.gather(*(_image(n, one, worker, gateway) for n, one in some))
    return terms


async def _image(n: int, image: QueryImage, worker: WorkerCard, gateway: Gateway) -> Term:
    try:
        return await image_term(an_image(image), worker, gateway)
    except Unreadable as error:
        raise InvalidRequest(f"images[{n}].url: {error}") from error
    except (BadImage, InvalidRequest) as error:
        raise type(error)(f"images[{n}]: {error.detail}") from error
