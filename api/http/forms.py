"""Parses a multipart form piece by piece as it arrives, without keeping its data."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


@dataclass(frozen=True)
class PartBegin:
    """The beginning of a part.

    Attributes:
        name: the name of the field.
        filename: the name of the file; None for a field that is not a file.
    """

    name: str
    filename: str | None


@dataclass(frozen=True)
class PartEnd:
    """The end of the current part."""


FormEvent = PartBegin | bytes | PartEnd  # bytes: data of the current part


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary of a multipart form; None for another content type.

    Raises:
        HTTPException: 400 for a form without a boundary.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return None
    if not options.get(b"boundary"):
        raise HTTPException(400, "the form has no boundary")
    return options[b"boundary"]


async def form_events(boundary: bytes, stream: AsyncIterator[bytes]) -> AsyncIterator[FormEvent]:
    """Yield the events of a form in their order.

    Args:
        boundary: the boundary from the Content-Type header.
        stream: the body of the request.

    Raises:
        HTTPException: 400 for a body that is not a multipart form, or ends too early.
    """
    parser = _Parser(boundary)
    async for data in stream:
        for event in parser.feed(data):
            yield event
    if not parser.ended:
        raise HTTPException(400, "the form ends before its last boundary")


class _Parser:
    def __init__(self, boundary: bytes) -> None:
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        self.ended = False
        self._events: list[FormEvent] = []
        self._on_part_begin()
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise HTTPException(400, "the boundary of the form is too long") from error

    def feed(self, data: bytes) -> list[FormEvent]:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise HTTPException(400, "the body is not a multipart form") from error
        events, self._events = self._events, []
        return events

    def _on_part_begin(self) -> None:
        self._disposition = self._field = self._value = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise HTTPException(400, "a part of the form has no name")
        filename = options.get(b"filename")
        name = None if filename is None else decoded(filename)
        self._events.append(PartBegin(decoded(options[b"name"]), name))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(data[start:end])

    def _on_part_end(self) -> None:
        self._events.append(PartEnd())

    def _on_end(self) -> None:
        self.ended = True


def decoded(text: bytes) -> str:
    """Decode UTF-8, or Latin-1 when the text is not valid UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
