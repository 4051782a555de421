"""The route that returns embeddings, for clients that store or compare vectors themselves."""

import asyncio

from fastapi import APIRouter, Request, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.replies import error_of
from clipfleet.api.http.disconnect import WHILE_CONNECTED
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.search.terms import check_text, image_input, load_image_term
from clipfleet.api.search.timing import DOCUMENTED, Timing, timed_response
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


@router.post("", summary="Embed texts or images", response_model=EmbedOut, responses=DOCUMENTED)
@needs("read", body="batch")
async def embed(body: EmbedIn, gateway: GatewayDep, request: Request) -> Response:
    """Return the embeddings of texts or of images, computed with the model of the collections.

    Row i of the embeddings belongs to item i of the request.
    """
    timing = Timing()
    limit = gateway.settings.limits.embeds
    if len(body.texts or body.images or ()) > limit:
        raise TooLarge(f"the request has more than {limit} items")
    worker = await gateway.worker("query", body.model or gateway.settings.model)
    terms = await _terms(body, worker, gateway)
    queries = (gateway.queries.ask(Query.of(term), worker.model) for term in terms)
    asked_s = timing.seconds()
    answers = await asyncio.gather(*queries)
    times = max((answer.times for answer in answers), key=sum)  # of the batch with most work
    timing.answered(timing.seconds() - asked_s, times, searched=False)
    for answer in answers:
        if answer.error:
            raise error_of(answer)
    rows = [list(answer.embedding) for answer in answers]
    cut_texts = [n for n, answer in enumerate(answers) if answer.truncated_texts]
    content = EmbedOut(
        model=worker.model, dim=worker.dim, embeddings=rows, truncated_texts=cut_texts
    ).model_dump_json()
    return timed_response(content.encode(), timing, request)


async def _terms(body: EmbedIn, worker: WorkerCard, gateway: Gateway) -> list[Term]:
    for text in body.texts or ():
        check_text(text, gateway)
    texts = [Term(kind="text", value=text) for text in body.texts or ()]
    return texts or await _images(body.images or [], worker, gateway)


async def _images(images: list[QueryImage], worker: WorkerCard, gateway: Gateway) -> list[Term]:
    """Load the images, a few at once, so that one request cannot occupy every fetch slot."""
    terms: list[Term] = []
    at_once = gateway.settings.fetch.queries
    for first in range(0, len(images), at_once):
        group = enumerate(images[first : first + at_once], first)
        terms += await asyncio.gather(*(_image(n, image, worker, gateway) for n, image in group))
    return terms


async def _image(n: int, image: QueryImage, worker: WorkerCard, gateway: Gateway) -> Term:
    try:
        return await load_image_term(image_input(image), worker, gateway)
    except Unreadable as error:
        raise InvalidRequest(f"images[{n}].url: {error}") from error
    except (BadImage, InvalidRequest) as error:
        raise type(error)(f"images[{n}]: {error.detail}") from error
