"""Own vectors as they are stored and compared: as 32-bit numbers."""

from collections.abc import Iterator
from typing import Any

import pytest

from clipfleet import Client, ProblemError
from clipfleet.testing import MemoryService

GOOD, ZEROS, TINY, SHORT = [0.0, 1.0], [0.0, 0.0], [1e-200, 0.0], [1e-30, -1e-30]
USELESS = [(ZEROS, "zeros"), (TINY, "zeros"), (SHORT, "shorter than 1e-15")]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with MemoryService(dim=2) as service, service.client() as client:
        for metric in ("cosine", "dot", "euclidean"):
            client.create_collection(metric, metric=metric, dim=2)
        yield client


def rows(**vectors: list[float]) -> list[dict[str, Any]]:
    return [{"id": name, "values": values} for name, values in vectors.items()]


@pytest.mark.parametrize(("values", "why"), USELESS)
def test_a_vector_without_a_direction_is_not_stored(
    client: Client, values: list[float], why: str
) -> None:
    with pytest.raises(ProblemError, match=f"vector 'b': .*{why}"):
        client.upsert("cosine", rows(a=GOOD, b=values))
    assert client.search("cosine", vector=GOOD).matches == []


@pytest.mark.parametrize(("values", "why"), USELESS)
def test_a_vector_without_a_direction_is_not_searched_by(
    client: Client, values: list[float], why: str
) -> None:
    with pytest.raises(ProblemError, match=why):
        client.search("cosine", vector=values)
    with pytest.raises(ProblemError, match=rf"terms\[1\]\..*{why}"):
        client.search("cosine", terms=[{"vector": GOOD}, {"vector": values}])


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_other_metrics_take_vectors_without_a_direction(client: Client, metric: str) -> None:
    client.upsert(metric, rows(zeros=ZEROS, tiny=TINY, short=SHORT))
    assert len(client.search(metric, vector=TINY).matches) == 3


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_a_number_that_is_too_large_is_named_with_its_row(client: Client, metric: str) -> None:
    with pytest.raises(ProblemError, match=r"vector 'b': a number of the vector is over 1e\+15"):
        client.upsert(metric, rows(a=GOOD, b=[1e300, 0.0]))
