"""Limits on the size of an answer, and the choice of searches that run outside the batch."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from clipfleet.common.queue.messages import LARGE_ROWS, Query, QueryBatch, Search, Term
from clipfleet.testing import MemoryService
from support.coalescer_harness import HERE

DIM, ROWS, CAPTION = 64, 600, "x" * 1_000
SEARCH = "/v1/collections/large/search"


@pytest.fixture(scope="module")
def web() -> Iterator[httpx.Client]:
    with MemoryService(dim=DIM, limits={"answer_bytes": 100_000}) as service:
        with service.client() as client:
            client.create_collection("large")
            rows = ({"id": f"{n}", "values": [1.0] * DIM, "metadata": {"text": CAPTION}}
                    for n in range(ROWS))  # fmt: skip
            client.upsert("large", rows)
        with httpx.Client(base_url=service.url, timeout=60, trust_env=False) as http:
            yield http


def test_an_answer_with_too_many_bytes_ends_before_the_first_match_without_room(
    web: httpx.Client,
) -> None:
    for top_k in (99, ROWS):  # with others, and aside
        answer = web.post(SEARCH, json={"id": "1", "top_k": top_k})
        assert answer.json()["truncated"] == "answer_bytes"
        assert 80 < len(answer.json()["matches"]) < 99
        assert 98_000 < len(answer.content) < 100_200
    fewer = web.post(SEARCH, json={"id": "1", "top_k": 50})
    assert len(fewer.json()["matches"]) == 50
    assert fewer.json()["truncated"] is None
    assert fewer.json()["matches"][0]["metadata"] == {"text": CAPTION}
    bare = web.post(SEARCH, json={"id": "1", "top_k": ROWS, "include_metadata": False})
    assert len(bare.json()["matches"]) == ROWS


@pytest.mark.parametrize("top_k", [20, ROWS])
def test_the_answers_of_a_batch_are_bounded_together(web: httpx.Client, top_k: int) -> None:
    options = {"top_k": top_k, "include_metadata": top_k < ROWS}
    queries = [{"id": f"{n}", **options} for n in range(64)]
    answer = web.post(f"{SEARCH}/batch", json={"queries": queries})
    assert answer.status_code == 200
    assert len(answer.content) < 100_000 + 64 * 1_000
    results: list[Any] = answer.json()["results"]
    full = [result for result in results if "problem" not in result]
    for result in full:
        assert result["truncated"] == (None if len(result["matches"]) == top_k else "answer_bytes")
        assert len(json.dumps(result)) < 100_000 / 4 + 5_000, "a quarter, and spaces"
    assert 4 <= len(full) < 64
    for result in results:
        if problem := result.get("problem"):
            assert problem["status"] == 413
            assert "fewer queries" in problem["detail"]


def query(kind: Any, **more: Any) -> Query:
    options: dict[str, Any] = {"collection": HERE, "namespace": "n", "top_k": 10, **more}
    value = (1.0,) * 4 if kind == "vector" else "x"
    return Query.of(Term(kind=kind, value=value), Search(**options))


@pytest.mark.parametrize(
    ("queries", "aside"),
    [
        ([query("id"), query("vector")], ""),
        ([query("id"), query("id", top_k=LARGE_ROWS)], "large"),
        ([query("vector", top_k=100, include_values=True, offset=50)], "large"),
        ([query("id", top_k=10, group_by="label")], ""),
        ([query("vector", top_k=100, group_by="label")], "large"),
        ([query("text", top_k=LARGE_ROWS)], ""),  # the model is asked in turn
        ([query("vector", exact=True)], "exact"),
    ],
)
def test_what_takes_long_is_answered_beside_the_others(queries: list[Query], aside: str) -> None:
    fields: dict[str, Any] = {"model": "m", "batch_id": "b", "reply_to": "r"}
    batch = QueryBatch(**fields, deadlines=(1.0,) * len(queries), queries=tuple(queries))
    assert batch.aside == aside


def test_no_search_for_many_waits_with_those_for_few(web: httpx.Client) -> None:
    """A text query is embedded with the others first."""
    for body in ({"text": "x"}, {"id": "1"}, {"vector": [1.0] * DIM}):
        bare = {"top_k": ROWS, "include_metadata": False}
        assert len(web.post(SEARCH, json={**body, **bare}).json()["matches"]) == ROWS
