"""Models of requests and answers in the shape of OpenAI's API, for clients that speak it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from clipfleet.common.http.request import Request

TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
IMAGE_PART = {
    "type": "object",
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "object",
                    "properties": {
                        "url": {"type": "string", "minLength": 1},
                        "detail": {"description": "Is ignored."},
                    },
                    "required": ["url"],
                    "additionalProperties": False,
                },
            ]
        },
    },
    "required": ["type", "image_url"],
    "additionalProperties": False,
}
INPUT = {"anyOf": [{"type": "string", "minLength": 1}, TEXT_PART, IMAGE_PART]}
INPUTS = {"anyOf": [*INPUT["anyOf"], {"type": "array", "items": INPUT, "minItems": 1}]}

Modality = Literal["auto", "text", "image"]


class EmbeddingsIn(Request):
    """A request to embed texts, images, or both."""

    input: Annotated[Any, WithJsonSchema(INPUTS)] = Field(
        description="One input or a list. A string is a text, or an image if all of it is a data "
        "URI of an image or an http(s) URL; `modality` sets what it is. An object is "
        '`{"type": "text", "text": …}` or `{"type": "image_url", "image_url": {"url": …}}`.',
        examples=["a church at night", ["a church at night", "https://example.org/church.jpg"]],
    )
    model: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Model that embeds them, see `GET /v1/models`; absent: that of the service.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None,
        description="Format of an embedding: a list of numbers (float), or base64 of 32-bit "
        "little-endian numbers.",
    )
    dimensions: int | None = Field(
        None, ge=1, description="Length of an embedding. Only that of the model is accepted."
    )
    user: str | None = Field(None, description="Is ignored.")
    modality: Modality = Field(
        "auto",
        description="What strings are. auto: images if they are data URIs of images or http(s) "
        "URLs, otherwise texts.",
    )


class EmbeddingOut(BaseModel):
    """An embedding."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Position of its input in the request.")
    embedding: list[float] | str = Field(
        description="Numbers of unit length, in the format that the request asked for."
    )


class UsageOut(BaseModel):
    """The size of a request."""

    prompt_tokens: int = Field(
        description="Words and punctuation marks of the texts: about the number of tokens."
    )
    total_tokens: int = Field(description="The same number.")


class EmbeddingsOut(BaseModel):
    """Embeddings of texts and images."""

    object: Literal["list"] = "list"
    data: list[EmbeddingOut] = Field(description="One for each input, in their order.")
    model: str = Field(description="Model that embedded them.")
    usage: UsageOut


class ModelOut(BaseModel):
    """A model that workers serve."""

    id: str = Field(description="Name of the model.")
    object: Literal["model"] = "model"
    created: int = Field(description="When its first worker started, unix time in seconds.")
    owned_by: str = "clipfleet"


class ModelsOut(BaseModel):
    """The models that workers serve."""

    object: Literal["list"] = "list"
    data: list[ModelOut] = Field(description="The models; that of the service comes first.")


class OpenAIError(BaseModel):
    """What is wrong with a request."""

    message: str = Field(description="What is wrong, in words.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The part of the request that is wrong; null: none.")
    code: str | None = Field(description="Stable name of the kind of error.")


class OpenAIErrorOut(BaseModel):
    """An error in the shape of OpenAI's API."""

    error: OpenAIError
