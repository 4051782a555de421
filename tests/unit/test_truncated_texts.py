"""Texts that are longer than the model reads: every answer says so."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from clipfleet import SearchResult
from clipfleet.testing import HashEmbedder
from support.clients import client_class
from support.in_process import InProcess

__all__ = ["client_class"]

SHORT, LONG = "a dog", "a dog, " * 20


class ShortSighted(HashEmbedder):
    """Reads 40 characters of a text."""

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        return [len(text) > 40 for text in texts]


@pytest.fixture(scope="module")
def service() -> Iterator[InProcess]:
    with InProcess(embedder=ShortSighted(16)) as running, running.client() as client:
        client.create_collection("images")
        vectors = client.embed([f"{n}" for n in range(3)])
        rows = [{"id": f"{n}", "values": vector} for n, vector in enumerate(vectors)]
        client.upsert("images", rows)
        yield running


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"top_k": 600}])
def test_a_search_says_so(service: InProcess, client_class: Any, options: dict[str, Any]) -> None:
    with client_class(service.url) as client:
        assert client.search(text=SHORT, **options).truncated_texts == []
        assert client.search(text=LONG, **options).truncated_texts == [0]
        terms = [{"text": LONG}, {"id": "1"}, {"text": SHORT}, {"text": f"{LONG}!", "weight": -1}]
        assert client.search(terms=terms, **options).truncated_texts == [0, 3]


def test_each_search_of_a_batch_says_so(service: InProcess) -> None:
    with service.client() as client:
        results = client.search_many("images", [{"text": LONG}, {"text": SHORT}, {"id": "1"}])
    cut = [result.truncated_texts for result in results if isinstance(result, SearchResult)]
    assert cut == [[0], [], []]


def test_an_embedding_says_so(service: InProcess, client_class: Any) -> None:
    texts = [SHORT, LONG, *[SHORT] * 70, LONG]
    with service.http() as http:
        answer = http.post("/v1/embed", json={"texts": texts[:3]}).json()
        assert answer["truncated_texts"] == [1]
    with client_class(service.url) as client:
        with pytest.warns(UserWarning, match="longer than the model reads") as caught:
            assert len(client.embed(texts)) == len(texts)
        assert [str(warning.message).partition(":")[0] for warning in caught] == [
            "texts[1]",
            "texts[72]",
        ]
        with warnings.catch_warnings(action="error"):
            client.embed([SHORT])


def test_the_command_line_says_so(service: InProcess) -> None:
    done = service.cli("search", LONG)
    assert "A text is longer than the model reads: only the beginning counts." in done.stderr
    assert "longer" not in service.cli("search", SHORT).stderr
