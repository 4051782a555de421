"""The base of models of requests."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

MAX_FIELDS = 100  # fields of a request, known or unknown


class Request(BaseModel):
    """The base of requests. Unknown fields are errors, and so are values of another type: nothing
    is deleted because of a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="wrap")
    @classmethod
    def _known_fields(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Limit the number of fields, and say which field an unknown one may stand for.

        Every wrong field is reported, and a million take long.
        """
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"there are {len(data)} fields; the limit is {MAX_FIELDS}")
        try:
            return validate(data)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            if not any(_is_unknown_field(fault) for fault in faults):
                raise
            known = list(cls.model_fields)
            details = [_with_advice(fault, known) for fault in faults]
            raise ValidationError.from_exception_data(error.title, details) from None


def _is_unknown_field(fault: ErrorDetails) -> bool:
    return fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1


def _with_advice(fault: ErrorDetails, known: Sequence[str]) -> InitErrorDetails:
    message = fault["msg"]
    if _is_unknown_field(fault):
        message = "unknown field"
        if near := get_close_matches(str(fault["loc"][0]), known, n=1):
            message += f"; did you mean {near[0]!r}?"
    kind = PydanticCustomError(fault["type"], "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=fault["loc"], input=fault["input"])
