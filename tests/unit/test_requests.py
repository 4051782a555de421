"""Validation rules that hold for every kind of request."""

from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from clipfleet.common.http.collections import DeleteIn, RecallIn
from clipfleet.common.http.request import MAX_FIELDS
from clipfleet.common.http.schemas import EmbedIn, JobIn, VectorsIn
from clipfleet.common.http.search import SearchIn
from clipfleet.testing import MemoryService


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


@pytest.mark.parametrize(
    ("sent", "field", "message"),
    [
        ({"text": "x", "topk": 3}, "topk", "unknown field; did you mean 'top_k'?"),
        ({"text": "x", "colour": 3}, "colour", "unknown field"),
        ({"image": {"ur": "x"}}, "image.ur", "unknown field; did you mean 'url'?"),
        ({"terms": [{"txt": "{x}"}]}, "terms.0.txt", "unknown field; did you mean 'text'?"),
    ],
)
def test_an_unknown_field_is_named_with_what_it_may_stand_for(
    sent: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ValidationError) as error:
        SearchIn.model_validate(sent)
    messages = {".".join(map(str, fault["loc"])): fault["msg"] for fault in error.value.errors()}
    assert messages[field] == message


def test_every_fault_is_reported_beside_an_unknown_field() -> None:
    with pytest.raises(ValidationError) as error:
        SearchIn.model_validate({"text": "x", "topk": 3, "offset": -1, "group_size": 0})
    messages = {str(fault["loc"][0]): fault["msg"] for fault in error.value.errors()}
    assert messages.keys() == {"topk", "offset", "group_size"}
    assert messages["offset"] == "Input should be greater than or equal to 0"


def test_an_unknown_field_of_a_source_is_named() -> None:
    with pytest.raises(ValidationError, match="did you mean 'path'"):
        JobIn.model_validate({"source": {"type": "folder", "pth": "/photos"}})


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "detail"),
    [
        (b'{"text":\n "x",, }', JSON, "at line 2, column 6"),
        (b'{"text": "x"}', {}, "it has no content type; send Content-Type: application/json"),
        (b'{"text": "x"}', {"Content-Type": "text/plain"}, "it has the content type 'text/plain'"),
        (b"", {}, "body: Field required"),
        (b"[1]", JSON, "valid dictionary"),
    ],
)
def test_a_body_that_is_no_json_is_named(body: bytes, headers: dict[str, str], detail: str) -> None:
    with MemoryService(dim=4) as service, httpx.Client(base_url=service.url) as http:
        http.put("/v1/collections/c", json={})
        answer = http.post("/v1/collections/c/search", content=body, headers=headers)
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]
