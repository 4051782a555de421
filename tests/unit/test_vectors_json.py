"""Vectors in a request are parsed as JSON, one vector at a time."""

import json
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st

from clipfleet.api.collections import vectors_json
from clipfleet.api.collections.vectors_json import STEPS, parse_vectors
from clipfleet.common.errors import TooLarge
from clipfleet.common.http.schemas import VectorsIn
from clipfleet.common.settings import Limits

LIMITS = Limits(vectors=3)


def a_vector(**more: Any) -> dict[str, Any]:
    return {"id": "a", "values": [1, 0.5, -1e-3], "metadata": {"é": ["\n", None]}, **more}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("indent", [None, 3])
def test_it_reads_what_was_written(encoding: str, indent: int | None) -> None:
    body = {"namespace": "n", "vectors": [a_vector(), a_vector(id="b", values=[0.25] * 20_000)]}
    parsed = parse_vectors(json.dumps(body, indent=indent).encode(encoding), LIMITS)
    assert parsed.namespace == "n"
    assert [list(vector.values) for vector in parsed.vectors] == [
        [1, 0.5, -1e-3],
        [0.25] * 20_000,
    ]
    assert parsed.vectors[0].metadata == {"é": ["\n", None]}


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ([], ()),
        ("text", ()),
        ({}, ("vectors",)),
        ({"vectors": []}, ("vectors",)),
        ({"vectors": {}}, ("vectors",)),
        ({"vectors": [7]}, ("vectors", 0)),
        ({"vectors": [a_vector(), a_vector(values=["1"])]}, ("vectors", 1, "values", 0)),
        ({"vectors": [a_vector()], "colour": "blue"}, ("colour",)),
        ({"vectors": [a_vector()], "namespace": 7}, ("namespace",)),
    ],
)
def test_what_is_wrong_is_named(body: Any, where: tuple[Any, ...]) -> None:
    with pytest.raises(RequestValidationError) as caught:
        parse_vectors(json.dumps(body).encode(), LIMITS)
    assert caught.value.errors()[0]["loc"] == ("body", *where)


@given(st.text('{}[]":,1.5e-tan \\', max_size=30))
def test_what_is_no_json_is_none_here(text: str) -> None:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        with pytest.raises((json.JSONDecodeError, RequestValidationError)):
            parse_vectors(text.encode(), LIMITS)


@pytest.mark.parametrize(
    "text", ['{"vectors": [%s', '{"vectors": [%s]', '{"vectors": [%s]} x', '{"vectors" [%s]}']
)
def test_a_document_that_breaks_off_is_refused(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_vectors((text % json.dumps(a_vector())).encode(), LIMITS)


def test_too_many_vectors_are_refused_before_they_are_read() -> None:
    text = json.dumps({"vectors": [a_vector()] * 3})[:-2] + ", no JSON at all"
    with pytest.raises(TooLarge, match="CLIPFLEET_LIMITS__VECTORS"):
        parse_vectors(text.encode(), LIMITS)


@pytest.mark.parametrize("shape", ['{"vectors": [%s]}', '{"colour": %s}', "%s"])
def test_a_value_that_no_vector_needs_is_not_made(shape: str) -> None:
    value = "[" + "[]," * (STEPS[-1] // 3) + "[]]"
    with pytest.raises(TooLarge):
        parse_vectors((shape % value).encode(), LIMITS)


def test_a_number_may_lie_across_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_json, "STEPS", (1, 4_000))
    assert isinstance(
        parse_vectors(json.dumps({"vectors": [a_vector()]}).encode(), LIMITS), VectorsIn
    )
    with pytest.raises(RequestValidationError):
        parse_vectors(b"123", LIMITS)
