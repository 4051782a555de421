"""What users hand over - paths, bytes, open files, Pillow images, arrays - as it travels."""

import base64
import io
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

_LONG_TEXT = 65_536  # characters: the service takes a longer text for an image
_NUMBER = 25  # bytes of one, its comma included


@runtime_checkable
class PillowImage(Protocol):
    """What is used of `PIL.Image.Image`, which is not imported for it."""

    def save(self, fp: Any, **params: Any) -> None: ...

    def getexif(self) -> Any: ...


class Array(Protocol):
    """A numpy array, a torch tensor, whatever else can become a list."""

    def tolist(self) -> Any: ...


ImageInput = str | Path | bytes | BinaryIO | PillowImage
Numbers = Sequence[float] | Array
Files = str | Path | Iterable[str | Path]
Part = tuple[str, tuple[str, Any, str]]


def image_url(image: ImageInput) -> str | None:
    """The URL, where it is one: the service fetches it."""
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        return image
    return None


def image_bytes(image: ImageInput) -> bytes:
    """The file of an image. A `str` is a path here; `image_url` says when it is none."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).expanduser().read_bytes()
    data = _png(image) if isinstance(image, PillowImage) else image.read()
    if not isinstance(data, bytes):
        raise TypeError("an image must be opened in binary mode")
    return data


def image(given: ImageInput) -> dict[str, str]:
    """An image inside a JSON document: its URL, or its file."""
    if url := image_url(given):
        return {"url": url}
    return {"base64": base64.b64encode(image_bytes(given)).decode()}


def _png(image: PillowImage) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", exif=image.getexif())  # which says which way up it is
    return file.getvalue()


def numbers(values: Numbers) -> Any:
    """A list of plain floats; whether they are is for the schema to say."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def vector(given: Mapping[str, Any]) -> dict[str, Any]:
    """One `{id, values, label?, metadata?, uri?}`; None counts as left out."""
    told = {name: value for name, value in given.items() if value is not None}
    return {**told, "values": numbers(told["values"])} if "values" in told else told


def pieces(
    items: Iterable[T], most: int, size: Callable[[T], int], most_bytes: int
) -> Iterator[list[T]]:
    """So many items in one request, and so many bytes unless one item alone has more."""
    piece: list[T] = []
    room = most_bytes
    for item in items:
        bytes_ = size(item)
        if piece and (len(piece) == most or bytes_ > room):
            yield piece
            piece, room = [], most_bytes
        piece.append(item)
        room -= bytes_
    if piece:
        yield piece


def json_bytes(told: Any) -> int:
    """Of a document as JSON, hardly less than it will be. An image counts an eighth, as the service
    takes eight times as many bytes of images as of all else."""
    if isinstance(told, str):
        return len(told) // 8 if len(told) > _LONG_TEXT else 4 * len(told) + 3
    if isinstance(told, Mapping):
        return 2 + sum(json_bytes(name) + json_bytes(value) for name, value in told.items())
    if isinstance(told, list | tuple):
        numbers = not told or isinstance(told[0], float)
        return 2 + (_NUMBER * len(told) if numbers else sum(map(json_bytes, told)))
    return _NUMBER


class StoredFile:
    """A file to upload, open only while it is read: a thousand of them need one descriptor.

    It has what httpx asks of a file to know its length and to send it, if need be twice.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        self._file: BinaryIO | None = None

    def tell(self) -> int:
        return self._file.tell() if self._file else 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            return self._size + offset
        if self._file is None and offset == 0:
            return 0
        return self._opened().seek(offset)

    def read(self, size: int) -> bytes:
        data = self._opened().read(size)
        if not data:
            self.close()
        return data

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self._path.open("rb")
        return self._file


def file_parts(files: Files) -> list[Part]:
    """The files as parts of a form. Nothing is read yet, but what is missing is said now."""
    given = [files] if isinstance(files, str | Path) else files
    paths = [Path(file).expanduser() for file in given]
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; index() takes folders, upload() takes files")
    if not paths:
        raise ValueError("there are no files to upload")
    return [("files", (path.name, StoredFile(path), _kind(path))) for path in paths]


def _kind(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
