"""Own vectors as JSON, read one at a time: at no moment are all their numbers Python objects."""

import json
import re
from array import array
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from clipfleet.common.errors import TooLarge
from clipfleet.common.http.schemas import VectorIn, VectorsIn
from clipfleet.common.settings import Limits

STEPS = (65_536, 4_000_000)  # characters of one value: what is tried first, and the most
M = TypeVar("M", bound=BaseModel)
_SPACE = re.compile(r"[ \t\n\r]*")


def parse_vectors(body: bytes, limits: Limits) -> VectorsIn:
    """The request. RequestValidationError, JSONDecodeError, or TooLarge for too many vectors."""
    text = body.decode(json.detect_encoding(body), "surrogatepass")
    reader = _Reader(text)
    told: dict[str, Any] = {}
    if not reader.takes("{"):
        return _validated((), VectorsIn, reader.value())
    if not reader.takes("}"):
        while True:
            name = reader.name()
            told[name] = _vectors(reader, limits) if name == "vectors" else reader.value()
            if not reader.goes_on("}"):
                break
    reader.require_end()
    return _validated((), VectorsIn, told)


def _vectors(reader: "_Reader", limits: Limits) -> Any:
    if not reader.takes("["):
        return reader.value()
    found: list[VectorIn] = []
    if reader.takes("]"):
        return found
    while True:
        if len(found) == limits.vectors:
            said = f"more than {limits.vectors} vectors in one request (CLIPFLEET_LIMITS__VECTORS)"
            raise TooLarge(said)
        one = _validated(("vectors", len(found)), VectorIn, reader.value())
        found.append(one.model_copy(update={"values": array("d", one.values)}))
        if not reader.goes_on("]"):
            return found


class _Reader:
    """A place in a JSON document."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._decode = json.JSONDecoder().raw_decode

    def takes(self, sign: str) -> bool:
        """Whether this sign is next; then it is read."""
        self._skip()
        if self._text.startswith(sign, self._at):
            self._at += 1
            return True
        return False

    def goes_on(self, end: str) -> bool:
        if self.takes(","):
            return True
        self._require(end)
        return False

    def name(self) -> str:
        self._skip()
        start, name = self._at, self.value()
        if not isinstance(name, str):
            raise json.JSONDecodeError("Expecting a name in quotes", self._text, start)
        self._require(":")
        return name

    def value(self) -> Any:
        """TooLarge for one that no vector needs."""
        self._skip()
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
            if is_rest or used < size:  # or a number may go on
                self._at += used
                return value
        raise TooLarge(f"a vector, or another value, has more than {STEPS[-1]} characters")

    def require_end(self) -> None:
        self._skip()
        if self._at != len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _require(self, sign: str) -> None:
        if not self.takes(sign):
            raise json.JSONDecodeError(f"Expecting '{sign}'", self._text, self._at)

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found
        self._at = found.end()


def _validated(where: tuple[str | int, ...], kind: type[M], value: Any) -> M:
    """Models that `value` holds are taken as they are."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError(
            [{**fault, "loc": ("body", *where, *fault["loc"])} for fault in faults]
        ) from error
