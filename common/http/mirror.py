"""The option `mirror` of a job, what became of it, and the identity of a source."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, WithJsonSchema, field_validator

from clipfleet.common.http import uris
from clipfleet.common.http.request import Request

OnMissing = Literal["keep", "report", "delete"]
MAX_DELETE = 0.1
LISTABLE = ("folder", "bucket", "manifest", "archive")  # sources that say what they have not
# Fields of a source that change neither which images it has nor their ids.
_APART = frozenset({"fields", "name", "format", "label_from_folder", "sources", "digest"})
_PERCENT = re.compile(r"(100|\d{1,2}(?:\.\d{1,9})?)%")
MAX_NUMBER = 10**12
_SHAPES: list[JsonValue] = [
    {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "string", "pattern": f"^{_PERCENT.pattern}$"},
]
BAD_MAX_DELETE = (
    'max_delete is a share such as 0.1 or "10%" (1.0 is all), or a whole number of images'
)


class MirrorIn(Request):
    """What a job does with images that its source had before, and has no more."""

    missing: OnMissing = Field(
        "delete",
        description="What happens to indexed images that are gone from the source: delete them, "
        "report them, or keep them.",
    )
    max_delete: Annotated[
        int | float, WithJsonSchema({"anyOf": _SHAPES, "title": "Max Delete"}, mode="validation")
    ] = Field(
        MAX_DELETE,
        description="Delete nothing if more images than this are gone: a share of the images that "
        'the source had, such as 0.1 or "10%" (1.0 is all), or a whole number of images.',
    )
    dry_run: bool = Field(
        False, description="Only list and compare; nothing is indexed or deleted."
    )

    @field_validator("max_delete", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        return limit_of(value)


class MirrorOut(BaseModel):
    """How far a job has made the collection equal to its source."""

    missing: OnMissing = Field(description="What happens to images that are gone from the source.")
    max_delete: int | float = Field(
        description="Share or number of images that are deleted at most."
    )
    dry_run: bool = Field(description="Whether nothing is indexed and deleted.")
    gone: int | None = Field(
        description="Indexed images that are gone from the source; null until they are counted."
    )
    deleted: int = Field(description="Images among them that were deleted.")
    new: int | None = Field(
        description="In a dry run: images that are not indexed; otherwise null."
    )
    changed: int | None = Field(
        description="In a dry run: indexed images that may have changed, and would be read; "
        "otherwise null."
    )
    kept_because: str | None = Field(
        description="Why images that are gone are not deleted although the job deletes; null: no "
        "such reason."
    )


class MissingPage(BaseModel):
    """Images that are gone from the source of a job."""

    ids: list[str] = Field(description="Ids of the images.")
    total: int = Field(description="Number of images that are gone from the source.")
    next: str | None = Field(description="`cursor` of the next page; null on the last page.")


def limit_of(value: Any) -> int | float:
    """The number of images, or the share as a float, that `max_delete` stands for.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        value = float(match[1]) / 100
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(BAD_MAX_DELETE)
    if not 0 <= value <= (1 if isinstance(value, float) else MAX_NUMBER):
        raise ValueError(BAD_MAX_DELETE)
    return value


def exceeds(count: int, of: int, limit: int | float) -> bool:
    """Whether so many images of all that a source had are more than `max_delete`."""
    allowed = limit if isinstance(limit, int) else round(limit * of, 6)  # 0.29 * 100 is below 29
    return count > allowed


def is_listable(source: Mapping[str, Any]) -> bool:
    """Whether listing the source shows what it has no more, so that it can be mirrored."""
    if source.get("type") == "list":
        return all(map(is_listable, source.get("sources", ())))
    return source.get("type") in LISTABLE


def source_identity(namespace: str, source: Mapping[str, Any]) -> str:
    """Name a source whose images are in a namespace of some collection.

    Two requests have the same name when they list the same images under the same ids, as far as
    their text tells: neither labels nor the order of a list of sources count.

    Args:
        namespace: the namespace of its images.
        source: the source, as in a request or as the gateway stores it.

    Returns:
        16 hex digits.
    """
    canonical = json.dumps([namespace, _canonical(source)], sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _canonical(source: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in source.items() if name not in _APART}
    if "path" in kept:
        kept["path"] = os.path.normpath(str(kept["path"]))
        kept.setdefault("recursive", True)
    if "uri" in kept:
        kept["uri"] = _canonical_uri(str(kept["uri"]))
    if "sources" in source:
        parts = {json.dumps(_canonical(part), sort_keys=True) for part in source["sources"]}
        kept["sources"] = sorted(parts)
    return kept


def _canonical_uri(uri: str) -> str:
    with suppress(uris.BadUri):
        if uris.kind(uri) == "path":
            return os.path.normpath(uris.local_path(uri))
    return uri.rstrip("/")
