"""What is asked of a search over HTTP, alone or in a batch."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator

from clipfleet.common.http.schemas import (
    Problem,
    QueryImage,
    Request,
    SearchOptions,
    SearchOut,
    Values,
)

BATCH = 64  # queries in one request

WAYS = ("text", "image", "id", "vector", "terms")


class Asked(Request):
    """What to look for, in one of these ways."""

    text: str | None = Field(None, min_length=1)
    image: QueryImage | None = None
    id: str | None = Field(None, min_length=1, max_length=2_048)
    vector: Values | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in WAYS if name in type(self).model_fields]
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) != 1:
            said = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of {', '.join(ways)} (given: {said})")
        return self


class TermIn(Asked):
    """Exactly one of `text`, `image`, `id`, `vector`, and how much it counts."""

    weight: float = Field(1.0, ge=-1_000, le=1_000, description="negative: rather not like this")


class SearchIn(Asked, SearchOptions):
    """Exactly one of `text`, `image`, `id`, `vector` and `terms`, which mixes them."""

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
        None, min_length=1, description="weighted and added up"
    )


class SearchBatchIn(Request):
    """Every query is checked and answered for itself."""

    queries: list[SkipValidation[SearchIn]] = Field(min_length=1, max_length=BATCH)


class Refused(BaseModel):
    """In the place of an answer: why there is none."""

    problem: Problem


class SearchBatchOut(BaseModel):
    """Row i answers query i."""

    results: list[SearchOut | Refused]
    took_ms: float
