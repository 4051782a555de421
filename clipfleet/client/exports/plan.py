"""What an export is to write, and what it wrote."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from clipfleet.client.arguments import as_filter, text, whole
from clipfleet.client.payloads import image_bytes, image_url
from clipfleet.common.http.collections import MAX_ROW_IDS, RowsIn
from clipfleet.common.http.exchange import Description
from clipfleet.common.http.sources import format_of
from clipfleet.errors import InvalidRequest, invalid_argument
from clipfleet.results import Collection

Format = Literal["parquet", "manifest", "webdataset"]
FORMATS = get_args(Format)
Stage = Literal["reading", "writing"]
Progress = Callable[[Stage, int], None]

MAX_TOP_K = 10_000  # the largest offset + top_k of a search
QUERY_TERMS = frozenset({"text", "image", "id", "vector", "terms"})
QUERY_OPTIONS = frozenset({"min_score", "group_by", "group_size", "collapse", "exact"})
TABLES = ("jsonl", "csv", "txt")


@dataclass(frozen=True)
class ExportPlan:
    """What one export is to write.

    Attributes:
        collection: the collection as it was when the export began.
        target: the file, or the folder of shards.
        format: what is written.
        filter: metadata filter of the images; None: all.
        namespace: namespace of the images; None: all namespaces.
        query: the arguments of a search whose matches are exported; None: no search.
        top_k: matches of the search at most.
        shard_size: images in one shard at most.
        originals: whether shards have the image files.
    """

    collection: Collection
    target: Path
    format: Format
    filter: dict[str, Any] | None = None
    namespace: str | None = None
    query: dict[str, Any] | None = None
    top_k: int = 1_000
    shard_size: int = 10_000
    originals: bool = True

    @property
    def description(self) -> Description:
        """The description of the collection, as exports have it."""
        fields = self.collection.model_dump(include={*Description.model_fields})
        return Description(**fields)

    def identity(self) -> dict[str, Any]:
        """As JSON, what an unfinished export must have in common to be continued."""
        query = _identity(self.query)
        return {
            "collection": self.collection.name,
            "created_at": self.collection.created_at,
            "format": self.format,
            "filter": self.filter,
            "namespace": self.namespace,
            "query": query,
            "top_k": self.top_k if query else None,
            "shard_size": self.shard_size if self.format == "webdataset" else None,
            "originals": self.originals if self.format == "webdataset" else None,
        }

    def page(self, cursor: str) -> RowsIn:
        """The request for the page after a cursor."""
        with_values = self.format != "manifest"
        return RowsIn(
            filter=self.filter,
            namespace=self.namespace,
            cursor=cursor,
            include_values=with_values,
        )

    def page_of(self, ids: list[str]) -> RowsIn:
        """The request for the images with these ids."""
        with_values = self.format != "manifest"
        return RowsIn(ids=ids, namespace=self.namespace, include_values=with_values)

    @property
    def ids_per_page(self) -> int:
        """How many ids one request may have: about 3 MB of embeddings."""
        return max(1, min(MAX_ROW_IDS, 3_000_000 // (4 * self.collection.dim)))


def new_plan(
    collection: Collection,
    target: str | Path,
    *,
    target_format: Format | None,
    where: Mapping[str, Any] | None,
    namespace: str | None,
    query: str | Mapping[str, Any] | None,
    top_k: int,
    shard_size: int,
    originals: bool,
) -> ExportPlan:
    """Check the arguments of an export.

    Raises:
        InvalidRequest: one of them is not valid, or the name of the target contradicts the format.
        OSError: the image of the query cannot be read.
        ImportError: the format is Parquet, and pyarrow is not installed.
    """
    path = Path(text("target", target)).expanduser()
    if target_format is not None and target_format not in FORMATS:
        raise invalid_argument("format", f"expected {', '.join(FORMATS)}, not {target_format!r}")
    chosen = target_format or format_for(path)
    _require_name(path, chosen)
    if chosen == "parquet":
        import pyarrow.parquet  # noqa: F401  (fails before anything is read)
    top_k, shard_size = whole("top_k", top_k), whole("shard_size", shard_size)
    if not 1 <= top_k <= MAX_TOP_K:
        raise invalid_argument("top_k", f"{top_k} is not between 1 and {MAX_TOP_K}")
    if shard_size < 1:
        raise invalid_argument("shard_size", f"{shard_size} is not at least 1")
    search = None if query is None else _search_arguments(query)
    return ExportPlan(
        collection,
        path,
        chosen,
        as_filter(where),
        (namespace or "default") if search else namespace,
        search,
        top_k,
        shard_size,
        originals,
    )


def format_for(path: Path) -> Format:
    """The format that the name of a target tells.

    Raises:
        InvalidRequest: the name tells none.
    """
    table = format_of(path.name.lower())
    if table == "parquet":
        return "parquet"
    if table in TABLES:
        return "manifest"
    raise _wrong_target(
        f"the name {path.name!r} does not tell the format: end it in .parquet, .jsonl or .csv, "
        "or give the format (webdataset writes a folder)"
    )


def _wrong_target(message: str) -> InvalidRequest:
    return invalid_argument("target", message, is_sentence=True)


def _require_name(path: Path, chosen: Format) -> None:
    table = format_of(path.name.lower())
    if chosen == "manifest" and table not in ("jsonl", "csv"):
        raise _wrong_target(f"a manifest ends in .jsonl or .csv, and {path.name!r} does not")
    if chosen == "parquet" and table != "parquet":
        raise _wrong_target(f"a Parquet file ends in .parquet, and {path.name!r} does not")
    if chosen == "parquet" and path.name.lower().endswith(".gz"):
        raise _wrong_target("a Parquet file is compressed inside: end its name in .parquet")
    if chosen == "webdataset" and (table or path.name.lower().endswith((".tar", ".gz", ".zip"))):
        raise _wrong_target(
            f"webdataset shards are written into a folder, and {path.name!r} is the name of a "
            "file; name a folder"
        )


def _search_arguments(query: str | Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"text": query} if isinstance(query, str) else dict(query)
    if unknown := sorted(arguments.keys() - QUERY_TERMS - QUERY_OPTIONS):
        known = ", ".join(sorted(QUERY_TERMS | QUERY_OPTIONS))
        raise invalid_argument("query", f"it has {unknown[0]!r}; it may have {known}")
    if arguments.get("terms") is not None:
        arguments["terms"] = [_with_bytes(term) for term in arguments["terms"]]
    return _with_bytes(arguments)


def _with_bytes(term: Mapping[str, Any]) -> dict[str, Any]:
    """A term with its image as bytes: an open file can be read only once."""
    image = term.get("image")
    if image is None or image_url(image):
        return dict(term)
    return {**term, "image": image_bytes(image)}


def _identity(value: Any) -> Any:
    """A value as JSON, with the hash of an image in its place."""
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, Mapping):
        return {str(name): _identity(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_identity(item) for item in value] if isinstance(value, list | tuple) else value
