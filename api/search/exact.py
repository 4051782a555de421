"""Searches that take long, as the gateway sees them: each kind has a queue of its own."""

from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.queue.messages import Query, Search, Term
from clipfleet.common.queue.packed import PackedAnswer
from clipfleet.common.store.filters import parse_filter


async def ask_aside(query: Query, model: str, gateway: Gateway, queue: Coalescer) -> PackedAnswer:
    """Words and images are embedded as in any other search, so that the model is asked in turn;
    the searching goes on beside the workers' other work."""
    terms = []
    for term in query.terms:
        if term.kind in ("text", "image"):
            embedded = await gateway.queries.ask(Query.of(term), model)
            if embedded.error:
                return embedded
            term = Term(kind="vector", value=embedded.embedding, weight=term.weight)
        terms.append(term)
    return await queue.ask(Query(terms=tuple(terms), search=query.search), model)


async def require_few(search: Search, gateway: Gateway) -> None:
    """InvalidRequest when more images pass than an exact search compares with."""
    collection, most = search.collection, gateway.settings.limits.exact_rows
    count = gateway.store.count
    if await gateway.call(count, collection) <= most:
        return
    where = parse_filter(search.filter or {}, collection.fields)
    passing = await gateway.call(count, collection, search.namespace, where)
    if passing > most:
        raise InvalidRequest(
            f"an exact search compares with at most {most} images, and {passing} pass: narrow it "
            "with a filter, or ask the index"
        )
