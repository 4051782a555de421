"""Converts arguments (paths, bytes, open files, Pillow images, arrays) to JSON and forms."""

import base64
import json
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from clipfleet.client import arguments
from clipfleet.client.pillow import PillowImage, image_file
from clipfleet.common.http.collections import ImageChange
from clipfleet.common.http.schemas import VectorIn
from clipfleet.errors import invalid_argument

T = TypeVar("T")

_LONG_TEXT = 65_536  # characters: the service counts a longer text as an image
_NUMBER_BYTES = 25  # of a number in JSON, with its comma


class Array(Protocol):
    """A numpy array, a torch tensor, or anything else that has `tolist`."""

    def tolist(self) -> Any: ...


ImageInput = str | Path | bytes | bytearray | memoryview | BinaryIO | PillowImage
Numbers = Sequence[float] | Array
Files = str | Path | Iterable[str | Path]
Part = tuple[str, tuple[str, Any, str]]


def image_url(image: ImageInput) -> str | None:
    """The URL if the image is one, else None. The service fetches URLs."""
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        return image
    return None


def is_address(image: ImageInput) -> bool:
    """Whether the image is a URL or a data URI, which go to the service as they are."""
    return image_url(image) is not None or _is_data_uri(image)


def _is_data_uri(image: ImageInput) -> bool:
    return isinstance(image, str) and image[:5].lower() == "data:"


def image_bytes(image: ImageInput, name: str = "image") -> bytes:
    """The bytes of an image file. A `str` is a path.

    Args:
        image: the image.
        name: name of the argument.

    Raises:
        InvalidRequest: the value is no image, or a file opened as text.
        OSError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | Path):
        if not str(image) or "\0" in str(image):
            raise invalid_argument(name, f"{str(image)!r} is no path")
        return Path(image).expanduser().read_bytes()
    if isinstance(image, PillowImage):
        try:
            return image_file(image)
        except ValueError as error:
            raise invalid_argument(name, str(error)) from None
    if not hasattr(image, "read"):
        advice = ", such as PIL.Image.fromarray(array)" if hasattr(image, "dtype") else ""
        expected = "expected a path, URL, bytes, file opened for reading bytes, or Pillow image"
        raise invalid_argument(name, f"{expected}{advice}; not {arguments.kind_of(image)}")
    data = image.read()
    if not isinstance(data, bytes):
        raise invalid_argument(name, "the file must be opened in binary mode")
    return data


def image(value: ImageInput, name: str = "image") -> dict[str, str]:
    """An image as JSON: its URL, or its file in base64. The arguments are those of `image_bytes`"""
    if url := image_url(value):
        return {"url": url}
    if _is_data_uri(value):
        return {"base64": str(value)}
    return {"base64": base64.b64encode(image_bytes(value, name)).decode()}


def vector(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One vector `{id, values, label?, metadata?, uri?}` without fields that are None.

    Args:
        name: name of the argument, and the place in it.
        fields: the fields.

    Raises:
        InvalidRequest: a field is not valid.
    """
    expected = 'a mapping such as {"id": "a.jpg", "values": [...]}'
    plain = dict(arguments.mapping(name, fields, expected))
    present = {key: value for key, value in plain.items() if value is not None}
    for key, value in present.items():
        field = f"{name}.{key}"
        if key == "values":
            present[key] = arguments.numbers(field, value)
        elif key == "metadata":
            present[key] = arguments.as_metadata(field, value)
        else:
            present[key] = arguments.as_json(field, value)
    with arguments.checking(name):
        return VectorIn.model_validate(present).model_dump()


def image_change(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One change `{id, label?, metadata?}` of an image.

    Args:
        name: name of the argument, and the place in it.
        fields: the fields. A label that is None is removed.

    Raises:
        InvalidRequest: a field is not valid.
    """
    expected = 'a mapping such as {"id": "a.jpg", "label": "cat"}'
    change = dict(arguments.mapping(name, fields, expected))
    for key, value in change.items():
        read = arguments.as_changes if key == "metadata" else arguments.as_json
        change[key] = read(f"{name}.{key}", value)
    with arguments.checking(name):
        return ImageChange.model_validate(change).model_dump(exclude_unset=True)


def batches(
    items: Iterable[T], max_items: int, size: Callable[[T], int], max_bytes: int
) -> Iterator[list[T]]:
    """Divide items into batches.

    Args:
        items: the items, which are read as batches are taken.
        max_items: items of a batch at most.
        size: gives the bytes of an item.
        max_bytes: bytes of a batch at most, unless one item alone has more.
    """
    batch: list[T] = []
    remaining = max_bytes
    for item in items:
        bytes_ = size(item)
        if batch and (len(batch) == max_items or bytes_ > remaining):
            yield batch
            batch, remaining = [], max_bytes
        batch.append(item)
        remaining -= bytes_
    if batch:
        yield batch


def json_bytes(value: Any) -> int:
    """Bytes of a value as JSON, estimated from above.

    An image counts an eighth: the service accepts eight times as many bytes of images as of
    everything else.
    """
    if isinstance(value, str):
        return len(value) // 8 if len(value) > _LONG_TEXT else 4 * len(value) + 3
    if isinstance(value, Mapping):
        return 2 + sum(json_bytes(name) + json_bytes(item) for name, item in value.items())
    if isinstance(value, list | tuple):
        numbers = not value or isinstance(value[0], float)
        return 2 + (_NUMBER_BYTES * len(value) if numbers else sum(map(json_bytes, value)))
    return _NUMBER_BYTES


class StoredFile:
    """A file to upload that is open only while it is read: 1,000 files need one descriptor.

    Has the methods that httpx uses to find the length of a file and to send it, also twice.
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


def file_parts(files: Files, ids: Sequence[str] | None = None) -> list[Part]:
    """The files as parts of a form. Nothing is read yet.

    Args:
        files: the files.
        ids: the id of each of them. Default: their names.

    Raises:
        InvalidRequest: there are no files, one is a folder, there are fewer or more ids than files,
            or two files have the same id.
        FileNotFoundError: a file does not exist.
    """
    is_single = isinstance(files, str | Path)
    listed = [files] if is_single else arguments.items("files", files, "a path or a list of paths")
    paths = [Path(arguments.text(f"files.{n}", file)).expanduser() for n, file in enumerate(listed)]
    for path in paths:
        if path.is_dir():
            message = f"{path} is a folder: index() takes folders, upload() takes files"
            raise invalid_argument("files", message, is_sentence=True)
    if not paths:
        raise invalid_argument("files", "there are no files to upload", is_sentence=True)
    names = [path.name for path in paths] if ids is None else _ids(ids)
    if len(names) != len(paths):
        message = f"there are {len(names)} ids for {len(paths)} files"
        raise invalid_argument("ids", message, is_sentence=True)
    if len({*names}) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        message = f"two files have the id {double!r}, so one would replace the other"
        raise invalid_argument("ids", f"{message}; give other ids", is_sentence=True)
    return [
        ("files", (name, StoredFile(path), _media_type(path)))
        for name, path in zip(names, paths, strict=True)
    ]


def _ids(ids: Sequence[str]) -> list[str]:
    listed = arguments.items("ids", ids, "a list of ids")
    return [arguments.text(f"ids.{n}", name) for n, name in enumerate(listed)]


def upload_items(
    parts: Sequence[Part],
    labels: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any] | None] | None,
) -> str:
    """What an upload says of each file, as JSON; "" for nothing.

    Args:
        parts: the files.
        labels: the label of each of them.
        metadata: the metadata of each of them.

    Raises:
        InvalidRequest: there are fewer or more labels or metadata than files, or they are no texts
            and mappings that JSON can hold.
    """
    if labels is None and metadata is None:
        return ""
    items: list[dict[str, Any]] = [{"id": name} for _, (name, _, _) in parts]
    for n, (item, label) in enumerate(_one_each("labels", labels, items, "a list of texts")):
        if label is not None:
            item["label"] = arguments.text(f"labels.{n}", label, empty=True)
    every = _one_each("metadata", metadata, items, "a list with a mapping for each file")
    for n, (item, fields) in enumerate(every):
        if fields:
            item["metadata"] = arguments.as_metadata(f"metadata.{n}", fields)
    return json.dumps(items, allow_nan=False)


def _one_each(
    name: str, values: Any, items: Sequence[dict[str, Any]], what: str
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Each file with its value. InvalidRequest if there are fewer or more values than files."""
    listed = [] if values is None else list(arguments.items(name, values, what))
    if values is not None and len(listed) != len(items):
        message = f"there are {len(listed)} {name} for {len(items)} files"
        raise invalid_argument(name, message, is_sentence=True)
    return zip(items, listed, strict=False)


def _media_type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
