"""Models of migrations: a collection gets another model while it is searched."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.request import Request

MigrationState = Literal[
    "building", "paused", "ready", "swapped", "finished", "cancelled", "failed"
]


class MigrationIn(Request):
    """A request to migrate a collection to another model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "hash:32"}]})

    model: str = Field(
        min_length=1, max_length=512, description="Model of the embeddings to build."
    )


class SwapIn(Request):
    """A request to give the name of a collection to its other generation."""

    force: bool = Field(
        False,
        description="Do it although the other generation lacks images, or no worker serves its "
        "model.",
    )


class FinishIn(Request):
    """A request to end a migration and delete the old generation."""

    force: bool = Field(
        False, description="Cancel the jobs that still write to the old generation."
    )


class GenerationOut(BaseModel):
    """One of the two generations of a collection."""

    generation: str = Field(description="Its number, as in the answers of searches.")
    model: str = Field(description="Model of its embeddings.")
    dim: int = Field(description="Length of an embedding.")
    images: int = Field(description="Number of its images; 0 once it is deleted.")
    answers: bool = Field(description="Whether searches are answered from it.")


class ExampleOut(BaseModel):
    """What the two generations answer to one image."""

    id: str = Field(description="Id of the image.")
    namespace: str = Field(description="Namespace of the image.")
    old: list[str] = Field(
        description="Ids of the nearest images in the old generation, the nearest first."
    )
    new: list[str] = Field(description="The same in the new generation.")


class ComparisonOut(BaseModel):
    """How the answers of the two generations differ, on stored images as queries.

    The overlap says how much changes, not which model is better.
    """

    queries: int = Field(description="Number of images that were used as queries.")
    overlap_at_10: float = Field(
        description="Share of the ten nearest images that both generations find, 0 to 1."
    )
    labelled: int = Field(description="Number of these queries that have a label.")
    precision_at_10_old: float | None = Field(
        description="Share of the ten nearest images in the old generation that have the label of "
        "the query, 0 to 1; null without labels."
    )
    precision_at_10_new: float | None = Field(description="The same in the new generation.")
    measured_at: float = Field(description="When it was measured, unix time in seconds.")
    examples: list[ExampleOut] = Field(description="Some of the queries with their answers.")


class MigrationOut(BaseModel):
    """A migration of a collection to another model."""

    id: str = Field(description="Id of the migration.")
    collection: str = Field(description="Name of the collection.")
    state: MigrationState = Field(
        description="`building` until all images are copied for the first time, then `ready` to "
        "be swapped; `swapped` until it is finished or rolled back. `paused`, `finished`, "
        "`cancelled` and `failed` are what they say."
    )
    old: GenerationOut = Field(description="The generation that the migration began with.")
    new: GenerationOut = Field(description="The generation with the new model.")
    missing: int = Field(
        description="Number of images that the generation without the name lacks, beside those "
        "that cannot be read."
    )
    unreadable: int = Field(
        description="Number of images that cannot be copied, because their files cannot be read "
        "any more; GET …/migrations/unreadable lists them."
    )
    images_per_second: float | None = Field(
        description="Speed of the copying now; null while nothing is copied."
    )
    eta_s: float | None = Field(
        description="Seconds until all images are copied, if the speed stays; null: unknown."
    )
    waiting: str = Field(description="Why it makes no progress at present; empty: it does.")
    error: str = Field(description="Why it is paused or failed; empty: it is not.")
    jobs: list[str] = Field(description="Ids of the jobs that copy now.")
    comparison: ComparisonOut | None = Field(
        description="Comparison of the answers; null until all images are copied."
    )
    created_at: float = Field(description="When it began, unix time in seconds.")
    changed_at: float = Field(description="When its state changed, unix time in seconds.")


class UnreadableOut(BaseModel):
    """An image that cannot be copied to the other generation."""

    id: str = Field(description="Id of the image.")
    namespace: str = Field(description="Namespace of the image.")
    uri: str = Field(description="Where the image came from.")
    reason: str = Field(description="Why it cannot be read.")


class UnreadablePage(BaseModel):
    """One page of the images that cannot be copied."""

    images: list[UnreadableOut] = Field(description="The images.")
    next: str | None = Field(description="Cursor of the next page; null on the last page.")
