"""Validation rules that hold for every kind of request."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from clipfleet.common.http.collections import DeleteIn, RecallIn
from clipfleet.common.http.schemas import MAX_FIELDS, EmbedIn, JobIn, VectorsIn
from clipfleet.common.http.search import SearchIn


def faults(kind: type[BaseModel], body: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    return [str(error["loc"][0]) if error["loc"] else "" for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        (DeleteIn, {"all": "yes"}, "all"),
        (DeleteIn, {"all": 1}, "all"),
        (SearchIn, {"text": "x", "top_k": "10"}, "top_k"),
        (SearchIn, {"text": "x", "top_k": True}, "top_k"),
        (SearchIn, {"text": "x", "min_score": "0.5"}, "min_score"),
        (SearchIn, {"vector": ["1"]}, "vector"),
        (RecallIn, {"seed": "7"}, "seed"),
        (JobIn, {"source": {"type": "folder", "path": "/a", "recursive": "no"}}, "source"),
    ],
)
def test_a_value_of_another_kind_is_not_guessed_at(
    kind: type[BaseModel], body: dict[str, Any], field: str
) -> None:
    assert faults(kind, body) == [field]


def test_whole_numbers_are_numbers() -> None:
    assert SearchIn.model_validate({"vector": [1, 2.5], "min_score": 0}).vector == [1, 2.5]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (SearchIn, {"terms": [{}] * 1_000}),
        (SearchIn, {"vector": ["x"] * 1_000}),
        (EmbedIn, {"texts": [1] * 1_000}),
        (EmbedIn, {"images": [{}] * 1_000}),
        (VectorsIn, {"vectors": [7] * 1_000}),
        (JobIn, {"source": {"type": "urls", "urls": [1] * 1_000}}),
        (SearchIn, {"text": "x", **{f"unknown {n}": 1 for n in range(MAX_FIELDS)}}),
    ],
)
def test_of_a_thousand_faults_one_is_named(kind: type[BaseModel], body: dict[str, Any]) -> None:
    assert len(faults(kind, body)) == 1
