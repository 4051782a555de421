"""Slow searches: each kind has its own queue, and exact ones have a limit."""

from dataclasses import replace

from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.queue.messages import Query, Term
from clipfleet.common.queue.packed import PackedAnswer
from clipfleet.common.store.filters import Filter


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
        The answer to the search, with the times of all batches together; the answer to an
        embedding, if that has an error.
    """
    terms: list[Term] = []
    times: list[tuple[int, ...]] = []
    cut_terms: list[int] = []
    for n, term in enumerate(query.terms):
        if term.kind in ("text", "image"):
            embedded = await gateway.queries.ask(Query.of(term), model)
            if embedded.error:
                return embedded
            times.append(embedded.times)
            cut_terms += [n] if embedded.truncated_texts else []
            term = Term(kind="vector", value=embedded.embedding, weight=term.weight)
        terms.append(term)
    answer = await queue.ask(Query(terms=tuple(terms), search=query.search), model)
    times.append(answer.times)
    total = tuple(sum(numbers) for numbers in zip(*times, strict=False)) if all(times) else ()
    return replace(answer, times=total, truncated_texts=tuple(cut_terms))


async def check_exact_rows(
    collection: Collection, namespace: str, where: Filter | None, gateway: Gateway
) -> None:
    """Raise InvalidRequest when an exact search would compare with too many images.

    Args:
        collection: the collection to search.
        namespace: the namespace of the images.
        where: the parsed filter that the images pass; None: all images.
        gateway: has the limit and the store, which counts the images.
    """
    limit, count = gateway.settings.limits.exact_rows, gateway.store.count
    if await gateway.call(count, collection) <= limit:
        return
    matching = await gateway.call(count, collection, namespace, where)
    if matching > limit:
        raise InvalidRequest(
            f"an exact search compares with at most {limit} images, but {matching} match the "
            "filter; narrow the filter, or search without exact"
        )
