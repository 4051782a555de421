"""What kind of source a string names, by its looks. Shared by the command line and the clients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from clipfleet.common.http import uris
from clipfleet.common.http.sources import Source, format_of

Kind = Literal["folder", "manifest", "urls", "archive", "bucket"]
AnySource = str | Path | Mapping[str, Any] | Source | Sequence[str]

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip")
_source: TypeAdapter[Source] = TypeAdapter(Source)


def source_of(
    given: AnySource, *, kind: Kind | None = None, label_from_folder: bool = False
) -> Source:
    """ValueError, in one line, for what cannot be a source.

    A mapping or a model is taken as it is; of a string, `kind` overrides the guess.
    """
    return _checked(_raw(given, kind, label_from_folder))


def _raw(given: AnySource, kind: Kind | None, label: bool) -> Any:
    if isinstance(given, str | Path):
        return _named(str(given), kind or kind_of(str(given)), label)
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, Sequence):
        return {"type": "urls", "urls": list(given)}
    return given.model_dump()


def kind_of(name: str) -> Kind:
    """By the ending; a URL without a telling one is an image, a bucket's a prefix."""
    last = uris.name_of(name)
    if last.endswith(ARCHIVES):
        return "archive"
    if format_of(name):
        return "manifest"
    if uris.scheme(name) in ("", "file"):
        return "folder"
    return "urls" if uris.scheme(name) in ("http", "https") else "bucket"


def _named(name: str, kind: Kind, label: bool) -> dict[str, Any]:
    labelled = {"label_from_folder": True} if label else {}
    if kind == "folder":
        return {"type": kind, "path": _absolute(name), **labelled}
    if kind == "urls":
        return {"type": kind, "urls": [name], **labelled}
    return {"type": kind, "uri": _absolute(name), **labelled}


def _absolute(name: str) -> str:
    """A path as the service finds it; a URI as it is."""
    return name if "://" in name else str(Path(name).expanduser().absolute())


def _checked(raw: Any) -> Source:
    try:
        return _source.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = f"this kind of source ({raw.get('type')}) has no such option"
        raise ValueError(f"{where}: {said}" if where else said) from error
