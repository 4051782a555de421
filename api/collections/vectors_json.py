"""Parses own vectors from JSON one at a time, so that few numbers are Python objects at once."""

import json
import re
from array import array
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from clipfleet.common.errors import TooLarge
from clipfleet.common.http.schemas import VectorIn, VectorsIn
from clipfleet.common.settings import Limits

STEPS = (65_536, 4_000_000)  # characters of one value: the first attempt, and the limit
M = TypeVar("M", bound=BaseModel)
_SPACE = re.compile(r"[ \t\n\r]*")


def parse_vectors(body: bytes, limits: Limits) -> VectorsIn:
    """Parse the body of a request with vectors.

    Raises:
        JSONDecodeError: the body is not JSON.
        RequestValidationError: a field is missing or not valid.
        TooLarge: the body has too many vectors, or a value is too long.
    """
    text = body.decode(json.detect_encoding(body), "surrogatepass")
    reader = _Reader(text)
    fields: dict[str, Any] = {}
    if not reader.skip_if("{"):
        return _validate((), VectorsIn, reader.value())
    if not reader.skip_if("}"):
        while True:
            name = reader.name()
            fields[name] = _vectors(reader, limits) if name == "vectors" else reader.value()
            if not reader.continues("}"):
                break
    reader.require_end()
    return _validate((), VectorsIn, fields)


def _vectors(reader: "_Reader", limits: Limits) -> Any:
    if not reader.skip_if("["):
        return reader.value()
    vectors: list[VectorIn] = []
    if reader.skip_if("]"):
        return vectors
    while True:
        if len(vectors) == limits.vectors:
            raise TooLarge(
                f"the request has more than {limits.vectors} vectors (CLIPFLEET_LIMITS__VECTORS)"
            )
        vector = _validate(("vectors", len(vectors)), VectorIn, reader.value())
        vectors.append(vector.model_copy(update={"values": array("d", vector.values)}))
        if not reader.continues("]"):
            return vectors


class _Reader:
    """Reads a JSON document from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._decode = json.JSONDecoder().raw_decode

    def skip_if(self, sign: str) -> bool:
        """Skip this character and return True, if it is the next one."""
        self._skip_space()
        if self._text.startswith(sign, self._at):
            self._at += 1
            return True
        return False

    def continues(self, end: str) -> bool:
        """Skip a comma and return True, or skip the end of the array or object."""
        if self.skip_if(","):
            return True
        self._require(end)
        return False

    def name(self) -> str:
        """Read the name of a field and the colon after it."""
        self._skip_space()
        start, name = self._at, self.value()
        if not isinstance(name, str):
            raise json.JSONDecodeError("Expecting a name in quotes", self._text, start)
        self._require(":")
        return name

    def value(self) -> Any:
        """Read a value; TooLarge when it is longer than any valid vector."""
        self._skip_space()
        for size in STEPS:
            is_rest = self._at + size >= len(self._text)
            piece = self._text[self._at : self._at + size]
            try:
                value, used = self._decode(piece)
            except json.JSONDecodeError as error:
                if is_rest:
                    raise json.JSONDecodeError(
                        error.msg, self._text, self._at + error.pos
                    ) from error
                continue
            if is_rest or used < size:  # otherwise a number may continue in the next piece
                self._at += used
                return value
        raise TooLarge(f"a vector, or another value, has more than {STEPS[-1]} characters")

    def require_end(self) -> None:
        self._skip_space()
        if self._at != len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _require(self, sign: str) -> None:
        if not self.skip_if(sign):
            raise json.JSONDecodeError(f"Expecting '{sign}'", self._text, self._at)

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        assert space
        self._at = space.end()


def _validate(location: tuple[str | int, ...], model: type[M], value: Any) -> M:
    """Validate a value, whose own models are not validated again.

    Args:
        location: where the value is in the body, for the error.
        model: the model of the value.
        value: the parsed JSON.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError(
            [{**fault, "loc": ("body", *location, *fault["loc"])} for fault in faults]
        ) from error
