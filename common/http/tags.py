"""Models of requests about tags: words of a vocabulary that images get as metadata."""

from pydantic import BaseModel, ConfigDict, Field

from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import JobOut, Namespace

MAX_WORDS = 10_000
MAX_PREVIEWED = 500  # words of a dry run
WORD_BYTES = 256
TEMPLATE_BYTES = 512


class TagsIn(Request):
    """A request to tag the images of a collection with words of a vocabulary."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"vocabulary": ["dog", "cat", "car"], "field": "tags", "dry_run": True}]
        }
    )

    vocabulary: list[str] = Field(
        min_length=1,
        max_length=MAX_WORDS,
        description="Words or short phrases. Spaces around a word do not count, and a word that is "
        "named twice counts once.",
    )
    field: str = Field(
        "tags",
        min_length=1,
        max_length=63,
        description="Metadata field that gets the words. It is declared as `string[]` if the "
        "collection does not declare it.",
    )
    min_confidence: float = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="How sure a word must be for an image, from 0 to 1.",
    )
    template: str = Field(
        "a photo of a {}",
        max_length=TEMPLATE_BYTES,
        description="Text that is embedded for a word, which takes the place of `{}`.",
    )
    filter: dict[str, object] | None = Field(
        None, description="Filter that the images pass; absent: all images."
    )
    namespace: Namespace | None = Field(
        None, description="Namespace of the images; null: all namespaces."
    )
    dry_run: bool = Field(
        False,
        description="Write nothing and start no job: return what a sample of the images would get. "
        f"The vocabulary may have {MAX_PREVIEWED} words then.",
    )
    save: bool = Field(
        False,
        description="Also tag images that are indexed from now on, until `DELETE` on this path.",
    )


class TagExample(BaseModel):
    """An image that gets a word."""

    id: str = Field(description="Id of the image.")
    namespace: str = Field(description="Namespace of the image.")
    confidence: float = Field(description="How sure the word is for the image, 0 to 1.")


class TagCount(BaseModel):
    """A word, and the images of the sample that get it."""

    word: str = Field(description="The word.")
    count: int = Field(description="Number of images of the sample that get it.")
    examples: list[TagExample] = Field(description="The surest of them, up to five.")


class TagsPreview(BaseModel):
    """What a sample of the images would get."""

    sampled: int = Field(description="Number of images that were looked at.")
    total: int = Field(description="Number of images that the job would look at.")
    untagged: int = Field(description="Images of the sample that get no word.")
    words: list[TagCount] = Field(description="The words, those with most images first.")


class TagsOut(BaseModel):
    """The job that tags images, or, of a dry run, what it would do."""

    job: JobOut | None = Field(None, description="The job; null for a dry run.")
    preview: TagsPreview | None = Field(None, description="What a dry run has seen; null else.")


class SavedTags(BaseModel):
    """The vocabulary by which images get tags when they are indexed."""

    vocabulary: list[str] = Field(description="The words.")
    field: str = Field(description="Metadata field that gets them.")
    min_confidence: float = Field(description="How sure a word must be, 0 to 1.")
    template: str = Field(description="Text that is embedded for a word.")
