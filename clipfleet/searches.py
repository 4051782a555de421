"""What the clients' searches send, and how the answers are read."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clipfleet import payloads
from clipfleet.calls import Call, _path, _read
from clipfleet.common.http.schemas import SearchOptions
from clipfleet.common.http.search import BATCH, Refused, SearchBatchOut, SearchIn
from clipfleet.errors import ProblemError, problem_error
from clipfleet.results import SearchResult

BATCH_BYTES = 3_000_000
Outcomes = list[SearchResult | ProblemError]


def search(collection: str, asked: Mapping[str, Any], options: SearchOptions) -> Call[SearchResult]:
    """`asked`: one of text, image, id, vector and terms; the others are None."""
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        ways, said = ", ".join(f"{name}=" for name in asked), ", ".join(given) or "none"
        raise ValueError(f"give exactly one of {ways} (given: {said})")
    image = asked.get("image")
    if image is not None and not payloads.image_url(image):
        return _search_image(collection, payloads.image_bytes(image), options)
    where = _path("collections", collection, "search")
    body = _body({**asked, **options.model_dump()})
    return Call("POST", where, _read(SearchResult), json=body)


def _search_image(collection: str, image: bytes, options: SearchOptions) -> Call[SearchResult]:
    form = {name: value for name, value in options.model_dump().items() if value is not None}
    if "filter" in form:
        form["filter"] = json.dumps(form["filter"])
    where = _path("collections", collection, "search", "image")
    part = ("file", ("query", image, "application/octet-stream"))
    return Call("POST", where, _read(SearchResult), form=form, files=[part])


def search_many(queries: Iterable[Mapping[str, Any]], collection: str) -> Iterator[Call[Outcomes]]:
    """As many requests as it takes; images are read as their turn comes."""
    where = _path("collections", collection, "search", "batch")
    plain = (_body(one) for one in queries)
    for some in payloads.pieces(plain, BATCH, payloads.json_bytes, BATCH_BYTES):
        yield Call("POST", where, _outcomes, json={"queries": some})


def _outcomes(body: bytes) -> Outcomes:
    found = _read(SearchBatchOut)(body).results
    return [
        problem_error(one.problem.model_dump(exclude_none=True))
        if isinstance(one, Refused)
        else one
        for one in found
    ]


def _body(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query as it travels; ValidationError for one that cannot be right."""
    told = {name: value for name, value in query.items() if value is not None}
    terms = {"terms": [_plain(one) for one in told["terms"]]} if "terms" in told else {}
    return SearchIn.model_validate({**_plain(told), **terms}).model_dump(exclude_unset=True)


def _plain(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Images and arrays as JSON has them."""
    sent = dict(asked)
    if sent.get("image") is not None:
        sent["image"] = payloads.image(sent["image"])
    if sent.get("vector") is not None:
        sent["vector"] = payloads.numbers(sent["vector"])
    return sent
