"""Exact search as the gateway sees it: not too many images, and a queue of its own."""

from clipfleet.api.gateway import Gateway
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.filters import parse_filter
from clipfleet.common.messages import Answer, Query, Search, Term


async def ask_exactly(query: Query, model: str, gateway: Gateway) -> Answer:
    """Words and images are embedded as in any other search, so that the model is asked in turn;
    the comparing goes on beside the workers' other work."""
    assert query.search is not None
    await require_few(query.search, gateway)
    terms = []
    for term in query.terms:
        if term.kind in ("text", "image"):
            embedded = await gateway.queries.ask(Query.of(term), model)
            if embedded.error:
                return embedded
            term = Term(kind="vector", value=embedded.embedding, weight=term.weight)
        terms.append(term)
    return await gateway.exact.ask(Query(terms=tuple(terms), search=query.search), model)


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
