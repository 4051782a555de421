"""Slow searches: each kind has its own queue, and exact ones have a limit."""

from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.queue.messages import Query, Search, Term
from clipfleet.common.queue.packed import PackedAnswer
from clipfleet.common.store.filters import parse_filter


async def embed_and_ask(
    query: Query, model: str, gateway: Gateway, queue: Coalescer
) -> PackedAnswer:
    """Embed texts and images in the ordinary queue, then search in a queue of slow searches.

    So the model embeds in turn, and the search runs concurrently with the workers' other work.

    Args:
        query: the query.
        model: the model whose workers may answer.
        gateway: has the ordinary queue.
        queue: the queue of this kind of search.

    Returns:
        The answer to the search; the answer to an embedding, if that has an error.
    """
    terms = []
    for term in query.terms:
        if term.kind in ("text", "image"):
            embedded = await gateway.queries.ask(Query.of(term), model)
            if embedded.error:
                return embedded
            term = Term(kind="vector", value=embedded.embedding, weight=term.weight)
        terms.append(term)
    return await queue.ask(Query(terms=tuple(terms), search=query.search), model)


async def check_exact_rows(search: Search, gateway: Gateway) -> None:
    """Raise InvalidRequest when an exact search would compare with too many images."""
    collection, limit = search.collection, gateway.settings.limits.exact_rows
    count = gateway.store.count
    if await gateway.call(count, collection) <= limit:
        return
    where = parse_filter(search.filter or {}, collection.fields)
    matching = await gateway.call(count, collection, search.namespace, where)
    if matching > limit:
        raise InvalidRequest(
            f"an exact search compares with at most {limit} images, but {matching} match the "
            "filter; narrow the filter, or search without exact"
        )
