"""A multipart form as it comes in, part by part: nothing of it is kept."""

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
    """A new part. `filename` is None for a field that is no file."""

    name: str
    filename: str | None


@dataclass(frozen=True)
class PartEnd:
    """The part that began last is complete."""


FormEvent = PartBegin | bytes | PartEnd  # bytes: of the part that began last


def boundary_of(content_type: str) -> bytes | None:
    """None when the request is no multipart form."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return None
    if not options.get(b"boundary"):
        raise HTTPException(400, "the form has no boundary")
    return options[b"boundary"]


async def form_events(boundary: bytes, stream: AsyncIterator[bytes]) -> AsyncIterator[FormEvent]:
    """The form's parts in their order. HTTPException 400 for what is no form, or has no end."""
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
            raise HTTPException(400, "the body is no multipart form") from error
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
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
