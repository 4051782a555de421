"""Finds the kind of a source from its name. Shared by the command line and the clients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from clipfleet.common.http import uris
from clipfleet.common.http.sources import Source, format_of

Kind = Literal["folder", "manifest", "urls", "archive", "bucket"]
AnySource = str | Path | Mapping[str, Any] | Source | Sequence[str]

ARCHIVES = (
    ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz", ".tar.zst", ".zip"
)  # fmt: skip
_source: TypeAdapter[Source] = TypeAdapter(Source)


def source_of(
    value: AnySource, *, kind: Kind | None = None, label_from_folder: bool = False
) -> Source:
    """The source that a value describes.

    Args:
        value: a path or URI, a list of URLs, a mapping or a `Source`.
        kind: kind of a path or URI. Default: `kind_of`.
        label_from_folder: sets this option of a path or URI.

    Raises:
        ValueError: the value is not a valid source. The message is one line.
    """
    return _checked(_as_mapping(value, kind, label_from_folder))


def _as_mapping(value: AnySource, kind: Kind | None, label: bool) -> Any:
    if isinstance(value, str | Path):
        if not str(value).strip():
            raise ValueError("it is empty: give a path or an address")
        return _from_name(str(value), kind or kind_of(str(value)), label)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        if any(isinstance(item, Path) for item in value):
            raise ValueError("a list has URLs of images; upload() takes a list of files")
        return {"type": "urls", "urls": list(value)}
    if not isinstance(value, BaseModel):
        kind_of_value = type(value).__name__
        raise ValueError(f"expected a path, an address, a list or a mapping, not {kind_of_value}")
    return value.model_dump()


def kind_of(name: str) -> Kind:
    """The kind that a name has by its ending.

    Without a known ending, a path is a folder, a URL an image, and a bucket URI a prefix.
    """
    last = uris.name_of(name)
    if last.endswith(ARCHIVES):
        return "archive"
    if format_of(name):
        return "manifest"
    if uris.scheme(name) in ("", "file"):
        return "folder"
    return "urls" if uris.scheme(name) in ("http", "https") else "bucket"


def _from_name(name: str, kind: Kind, label: bool) -> dict[str, Any]:
    labelled = {"label_from_folder": True} if label else {}
    if kind == "folder":
        return {"type": kind, "path": _absolute(name), **labelled}
    if kind == "urls":
        return {"type": kind, "urls": [name], **labelled}
    return {"type": kind, "uri": _absolute(name), **labelled}


def _absolute(name: str) -> str:
    """A path made absolute; a URI as it is."""
    return name if "://" in name else str(Path(name).expanduser().absolute())


def _checked(raw: Any) -> Source:
    try:
        return _source.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"a source of type {raw.get('type')} has no such option"
        raise ValueError(f"{where}: {message}" if where else message) from error
