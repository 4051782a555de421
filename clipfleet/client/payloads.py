"""Converts arguments (paths, bytes, open files, Pillow images, arrays) to JSON and forms."""

import base64
import json
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from clipfleet.client.pillow import PillowImage, image_file

T = TypeVar("T")

_LONG_TEXT = 65_536  # characters: the service counts a longer text as an image
_NUMBER_BYTES = 25  # of a number in JSON, with its comma


class Array(Protocol):
    """A numpy array, a torch tensor, or anything else that has `tolist`."""

    def tolist(self) -> Any: ...


ImageInput = str | Path | bytes | BinaryIO | PillowImage
Numbers = Sequence[float] | Array
Files = str | Path | Iterable[str | Path]
Part = tuple[str, tuple[str, Any, str]]


def image_url(image: ImageInput) -> str | None:
    """The URL if the image is one, else None. The service fetches URLs."""
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        return image
    return None


def image_bytes(image: ImageInput) -> bytes:
    """The bytes of an image file. A `str` is a path. TypeError for a file opened as text."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).expanduser().read_bytes()
    data = image_file(image) if isinstance(image, PillowImage) else image.read()
    if not isinstance(data, bytes):
        raise TypeError("an image must be opened in binary mode")
    return data


def image(value: ImageInput) -> dict[str, str]:
    """An image as JSON: its URL, or its file in base64."""
    if url := image_url(value):
        return {"url": url}
    return {"base64": base64.b64encode(image_bytes(value)).decode()}


def numbers(values: Numbers) -> Any:
    """The values as a list. The schema checks that they are numbers."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def vector(fields: Mapping[str, Any]) -> dict[str, Any]:
    """One vector `{id, values, label?, metadata?, uri?}` without fields that are None."""
    present = {name: value for name, value in fields.items() if value is not None}
    return {**present, "values": numbers(present["values"])} if "values" in present else present


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
        ValueError: there are no files, one is a folder, there are fewer or more ids than files, or
            two files have the same id.
        FileNotFoundError: a file does not exist.
    """
    listed = [files] if isinstance(files, str | Path) else files
    paths = [Path(file).expanduser() for file in listed]
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: index() takes folders, upload() takes files")
    if not paths:
        raise ValueError("there are no files to upload")
    names = [path.name for path in paths] if ids is None else list(ids)
    if len(names) != len(paths):
        raise ValueError(f"there are {len(names)} ids for {len(paths)} files")
    if len({*names}) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"two files have the id {double!r}, so one would replace the other; give other ids"
        )
    return [
        ("files", (name, StoredFile(path), _media_type(path)))
        for name, path in zip(names, paths, strict=True)
    ]


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
        ValueError: there are fewer or more labels or metadata than files, or they are no texts and
            mappings that JSON can hold.
    """
    if labels is None and metadata is None:
        return ""
    if isinstance(labels, str):
        raise ValueError("labels= has to be a list with a text for each file; label= is for all")
    if isinstance(metadata, Mapping):
        raise ValueError("metadata= has to be a list with a mapping for each file")
    items: list[dict[str, Any]] = [{"id": name} for _, (name, _, _) in parts]
    for what, values in (("labels", labels), ("metadata", metadata)):
        if values is not None and len(values) != len(parts):
            raise ValueError(f"there are {len(values)} {what} for {len(parts)} files")
    for item, label in zip(items, labels or (), strict=False):
        if label is not None and not isinstance(label, str):
            raise ValueError(f"the label of {item['id']!r} is no text: {label!r}")
        item |= {} if label is None else {"label": label}
    for item, fields in zip(items, metadata or (), strict=False):
        if fields is not None and not isinstance(fields, Mapping):
            raise ValueError(f"the metadata of {item['id']!r} are no mapping: {fields!r}"[:300])
        item |= {"metadata": dict(fields)} if fields else {}
    try:
        return json.dumps(items, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the metadata cannot be sent as JSON: {error}") from error


def _media_type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
