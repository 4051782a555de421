"""Finds the kind of a source from its name. Shared by the command line and the clients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from clipfleet.common.http import uris
from clipfleet.common.http.sources import Source, format_of

Kind = Literal["folder", "manifest", "urls", "archive", "bucket"]
AnySource = str | Path | Mapping[str, Any] | Source | Sequence[str | Path]

ARCHIVES = (
    ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz", ".tar.zst", ".zip"
)  # fmt: skip
_source: TypeAdapter[Source] = TypeAdapter(Source)


def source_of(
    value: AnySource, *, kind: Kind | None = None, label_from_folder: bool = False
) -> Source:
    """The source that a value describes.

    Args:
        value: a path, URI or pattern, a list of them, a mapping or a `Source`.
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
        if wrong := [type(item).__name__ for item in value if not isinstance(item, str | Path)]:
            raise ValueError(f"expected a list of paths or addresses; one of them is {wrong[0]}")
        return _list_of(list(map(str, value)), kind, label)
    if not isinstance(value, BaseModel):
        kind_of_value = type(value).__name__
        raise ValueError(f"expected a path, an address, a list or a mapping, not {kind_of_value}")
    return value.model_dump()


def _list_of(names: Sequence[str], kind: Kind | None, label: bool) -> Any:
    """URLs of images as one source, and anything else as a list of sources."""
    kinds = [kind or kind_of(name) for name in names]
    if all(name_kind == "urls" for name_kind in kinds):
        return {"type": "urls", "urls": list(names)}
    if len(names) == 1:
        return _from_name(names[0], kinds[0], label)
    sources = [
        _from_name(name, name_kind, label) for name, name_kind in zip(names, kinds, strict=True)
    ]
    return {"type": "list", "sources": sources}


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
    """A path or a pattern of paths made absolute; a URI as it is."""
    return name if "://" in name else str(Path(name).expanduser().absolute())


def _checked(raw: Any) -> Source:
    try:
        return _source.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"a source of type {first['loc'][-2]} has no such option"
        raise ValueError(f"{where}: {message}" if where else message) from error
