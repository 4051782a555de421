"""Models of searches, single and in a batch."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import (
    Problem,
    QueryImage,
    SearchOptions,
    SearchOut,
    Values,
)

BATCH = 64  # queries in one request at most

WAYS = ("text", "image", "id", "vector", "terms")


class QueryInput(Request):
    """What to look for: exactly one of these fields."""

    text: str | None = Field(None, min_length=1, description="A description in words.")
    image: QueryImage | None = Field(None, description="An image.")
    id: str | None = Field(
        None, min_length=1, max_length=2_048, description="Id of an image in the collection."
    )
    vector: Values | None = Field(
        None, description="An embedding, as long as the collection's `dim`."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in WAYS if name in type(self).model_fields]
        present = [name for name in ways if getattr(self, name) is not None]
        if len(present) != 1:
            listed = ", ".join(present) or "none"
            raise ValueError(f"give exactly one of {', '.join(ways)} (given: {listed})")
        return self


class TermIn(QueryInput):
    """One term of a mixed query: exactly one of `text`, `image`, `id`, `vector`, and its weight."""

    weight: float = Field(
        1.0,
        ge=-1_000,
        le=1_000,
        description="Factor of the term in the sum; negative: away from this.",
    )


class SearchIn(QueryInput, SearchOptions):
    """A search: exactly one of `text`, `image`, `id`, `vector` and `terms`, which mixes them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "a church at night", "top_k": 5},
                {"id": "/photos/church.jpg", "filter": {"label": {"$in": ["church", "house"]}}},
                {"image": {"url": "https://example.org/church.jpg"}},
                {"terms": [{"id": "/photos/church.jpg"}, {"text": "at night", "weight": -0.5}]},
                {"text": "a church", "group_by": "label", "collapse": 0.97},
            ]
        }
    )

    terms: Annotated[list[TermIn], Field(fail_fast=True)] | None = Field(
        None, min_length=1, description="Terms whose weighted sum is the query."
    )


class SearchBatchIn(Request):
    """Several searches. Each is checked and answered independently of the others."""

    queries: list[SkipValidation[SearchIn]] = Field(
        min_length=1, max_length=BATCH, description="The searches."
    )


class Refused(BaseModel):
    """The error of one search of a batch."""

    problem: Problem = Field(description="Why there is no answer.")


class SearchBatchOut(BaseModel):
    """The answers to a batch of searches."""

    results: list[SearchOut | Refused] = Field(
        description="The answer or the error of each search, in their order."
    )
    took_ms: float = Field(description="Duration, milliseconds.")
