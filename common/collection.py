"""Collections: name, metric, model and declared metadata fields, and the checks of their values."""

import json
import math
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from clipfleet.common.errors import Conflict, InvalidRequest
from clipfleet.common.identity import ID_BYTES, id_problem, text_problem

Metric = Literal["cosine", "dot", "euclidean"]
FieldType = Literal["string", "int", "float", "bool", "string[]", "int[]"]
ELEMENTS: Mapping[str, FieldType] = {"string[]": "string", "int[]": "int"}  # of lists
LIST_ELEMENTS = 256  # of a declared list at most

STRING_BYTES = 1_024
LABEL_BYTES = 512
URI_BYTES = 4_096
METADATA_DEPTH = 16  # levels; JSON parsers stop at some hundred
TEXT_BYTES = 65_535  # the limit of a text field in Milvus
MISSING_STRING = "\N{SYMBOL FOR NULL}"
INT_LIMIT = 2**63 - 2
FLOAT_LIMIT = 1e307

# Fields that the service keeps for every image. Filters may use them; a collection cannot declare
# fields with these names.
BUILTIN_FIELDS: Mapping[str, FieldType] = {
    "id": "string",
    "uri": "string",
    "label": "string",
    "job_id": "string",
    "bytes": "int",
    "width": "int",
    "height": "int",
    "indexed_at": "int",
}
BUILTIN_BYTES = {"id": ID_BYTES, "uri": URI_BYTES, "label": LABEL_BYTES}
RESERVED = frozenset({*BUILTIN_FIELDS, "namespace", "pk", "metadata", "embedding", "content_hash"})

_COLLECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class Collection(BaseModel):
    """One generation of a named collection. Deleting and recreating it makes another generation.

    Attributes:
        v: the version of this record.
        name: its name.
        generation: 12 hex digits, different for each generation.
        metric: how embeddings are compared.
        model: the model of its embeddings.
        dim: the length of an embedding.
        fields: the types of its declared metadata fields, by name.
        lineage: the generation whose snapshots of sources it goes on with; "": its own.
        weights_id: which weights its model has; "": not known, as of models that are in no folder
            and of collections of earlier releases.
        created_at: when it was created, unix seconds.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    name: str
    generation: str
    metric: Metric
    model: str
    dim: int
    fields: dict[str, FieldType] = {}
    weights_id: str = ""
    lineage: str = ""

    @property
    def snapshots(self) -> str:
        """The generation whose snapshots of sources it has."""
        return self.lineage or self.generation

    created_at: float

    @property
    def columns(self) -> dict[str, FieldType]:
        """The declared fields that the store keeps apart, each in its own column.

        Lists are kept with the metadata that is not declared: every store compares them there.
        """
        return {name: kind for name, kind in self.fields.items() if kind not in ELEMENTS}

    @classmethod
    def new(
        cls,
        name: str,
        *,
        metric: Metric,
        model: str,
        dim: int,
        fields: Mapping[str, FieldType],
        weights_id: str = "",
    ) -> "Collection":
        """Create a new generation.

        Raises:
            InvalidRequest: the name, the name of a field, or the dimension is not allowed.
        """
        check_collection_name(name)
        _check_fields(fields)
        if not 1 <= dim <= 32_768:
            raise InvalidRequest(f"dim is {dim}; it must be between 1 and 32768")
        return cls(
            name=name,
            generation=secrets.token_hex(6),
            metric=metric,
            model=model,
            dim=dim,
            fields=dict(fields),
            weights_id=weights_id,
            created_at=time.time(),
        )

    def declaring(self, name: str, kind: FieldType) -> "Collection":
        """The collection with a further field. The store must keep it apart from no other column.

        Raises:
            Conflict: the field is declared with another type.
            InvalidRequest: the name of the field is not allowed, or there are too many fields.
        """
        known = self.fields.get(name)
        if known not in (None, kind):
            raise Conflict(
                f"field {name!r} of collection {self.name!r} is {known}, not {kind}; choose "
                "another field"
            )
        fields = {**self.fields, name: kind}
        _check_fields(fields)
        return self.model_copy(update={"fields": fields})

    def require_same(self, other: "Collection") -> None:
        """Raise Conflict when the other collection has another metric, model, dim or fields.

        This one may have further fields that are lists: `declaring` may have added them.
        """
        lists = {name: kind for name, kind in self.fields.items() if kind in ELEMENTS}
        other = other.model_copy(update={"fields": {**lists, **other.fields}})
        for what in ("metric", "model", "dim", "fields"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                advice = "delete it first or choose another name"
                if what == "model":
                    advice = f"migrate it (POST /v1/collections/{self.name}/migrations), {advice}"
                raise Conflict(
                    f"collection {self.name!r} has {what} {mine!r}, not {theirs!r}; {advice}"
                )


def weights_problem(collection: Collection, weights_id: str) -> str | None:
    """Why a worker's embeddings do not belong into a collection of its model; None when they do.

    Args:
        collection: the collection.
        weights_id: which weights the worker has; "": not known.
    """
    if not weights_id or collection.weights_id in ("", weights_id):
        return None
    return (
        f"the weights of the model {collection.model!r} are not those with which collection "
        f"{collection.name!r} was made: its folder has other ones now. Put the old weights back "
        "and start the workers again, or give the new weights a folder of another name and index "
        "the images with that model"
    )


class Alias(BaseModel):
    """A further name of a collection.

    Attributes:
        v: the version of this record.
        name: the name.
        collection: the name of the collection that it stands for.
        changed_at: when it was created or moved, unix seconds.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    name: str
    collection: str
    changed_at: float


def check_collection_name(name: str, what: str = "a collection") -> None:
    """Raise InvalidRequest when a collection, or `what` is named, cannot have this name."""
    if not _COLLECTION_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} cannot name {what}: 1 to 63 letters, digits, '_' or '-', "
            "the first a letter or a digit"
        )


def field_problem(
    name: str, value: Any, kind: FieldType, string_bytes: int = STRING_BYTES
) -> str | None:
    """Why a metadata value does not fit its declared field; None when it does.

    Args:
        name: the name of the field.
        value: the value.
        kind: the declared type.
        string_bytes: the size of a string at most, bytes of UTF-8.
    """
    if kind in ELEMENTS:
        return _list_problem(name, value, kind)
    if value == MISSING_STRING:
        return f"field {name} cannot be {MISSING_STRING!r}, which stands for a missing value"
    if kind == "string" and isinstance(value, str):
        return text_problem(f"field {name}", value, string_bytes, empty=True)
    if kind == "bool" and isinstance(value, bool):
        return None
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return None if abs(value) <= INT_LIMIT else f"field {name} is over 64 bits"
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return None if abs(value) <= FLOAT_LIMIT else f"field {name} is out of range"
    return f"field {name} must be {kind}, not {type(value).__name__}"


def _list_problem(name: str, value: Any, kind: FieldType) -> str | None:
    if not isinstance(value, list):
        return f"field {name} must be {kind}, a list, not {type(value).__name__}"
    if len(value) > LIST_ELEMENTS:
        return f"field {name} has {len(value)} elements, the limit is {LIST_ELEMENTS}"
    places = (
        field_problem(f"{name}[{n}]", element, ELEMENTS[kind]) for n, element in enumerate(value)
    )
    return next(filter(None, places), None)


def image_problem(
    collection: Collection,
    image_id: str,
    uri: str,
    label: str,
    metadata: Mapping[str, Any],
    metadata_bytes: int,
) -> str | None:
    """Why the store cannot store an image; None when it can.

    The check comes before the upsert: one such value makes a whole upsert fail.

    Args:
        metadata_bytes: the size of the metadata as JSON at most, bytes.
    """
    problem = (
        id_problem(image_id)
        or text_problem("uri", uri, URI_BYTES, empty=True)
        or text_problem("label", label, LABEL_BYTES, empty=True)
        or _metadata_problem(metadata, metadata_bytes)
    )
    if problem:
        return problem
    for name, kind in collection.fields.items():
        value = metadata.get(name)
        if value is not None and (problem := field_problem(name, value, kind)):
            return problem
    return None


def _metadata_problem(metadata: Mapping[str, Any], limit: int) -> str | None:
    if taken := sorted(RESERVED & metadata.keys()):
        return f"metadata cannot have the key {taken[0]!r}: the service keeps that field itself"
    if problem := _value_problem(metadata):
        return problem
    size = len(json.dumps(metadata, ensure_ascii=False).encode())
    return f"metadata has {size} bytes as JSON, the limit is {limit}" if size > limit else None


def _value_problem(metadata: Mapping[str, Any]) -> str | None:
    """Why JSON in Milvus, or in a reply, cannot hold the metadata; None when it can."""
    rest: list[tuple[Any, int]] = [(metadata, 0)]
    while rest:
        value, depth = rest.pop()
        if isinstance(value, Mapping | list):
            if depth == METADATA_DEPTH:
                return f"metadata is nested deeper than {METADATA_DEPTH} levels"
            inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
            rest += [(element, depth + 1) for element in inner]
        elif isinstance(value, str):
            if problem := text_problem("metadata", value, TEXT_BYTES, empty=True):
                return problem
        elif isinstance(value, float) and not math.isfinite(value):
            return "metadata contains a number that is not finite"
        elif isinstance(value, int) and abs(value) > INT_LIMIT:
            return "metadata contains a number over 64 bits"
    return None


def _check_fields(fields: Mapping[str, FieldType]) -> None:
    if len(fields) > 32:
        raise InvalidRequest(f"{len(fields)} fields declared; the limit is 32")
    for name in fields:
        if not _FIELD_NAME.fullmatch(name) or name in RESERVED:
            raise InvalidRequest(
                f"{name[:80]!r} cannot name a field: letters, digits and '_', "
                f"and none of {', '.join(sorted(RESERVED))}"
            )
