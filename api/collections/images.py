"""Routes that get or delete a single image, return its thumbnail, or write own vectors."""

import hashlib
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.generations import delete_rows
from clipfleet.api.collections.turns import write_in_turn
from clipfleet.api.collections.vectors_json import parse_vectors
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.search.terms import check_vector
from clipfleet.common.blobs import BlobGone
from clipfleet.common.collection import Collection, image_problem
from clipfleet.common.errors import InvalidRequest, NotFound
from clipfleet.common.http.schemas import Deleted, ImageOut, Upserted, VectorIn, VectorsIn
from clipfleet.common.identity import (
    DEFAULT_NAMESPACE,
    id_problem,
    namespace_problem,
    primary_key,
)
from clipfleet.common.imaging.thumbnails import read_thumbnail
from clipfleet.common.ledger.catalogue import Deletion, both_generations, to_delete_from
from clipfleet.common.settings import Limits
from clipfleet.common.store import Record

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["images"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

UPSERT_TIMEOUT_S = 60.0
MAX_AGE_S = 3_600  # of a thumbnail in a browser's cache
JPEG: dict[str, Any] = {"image/jpeg": {}}
ImageId = Annotated[
    str, Query(alias="id", min_length=1, max_length=2_048, description="Id of the image.")
]
Namespace = Annotated[
    str, Query(min_length=1, max_length=256, description="Namespace of the image.")
]


def key_of(namespace: str, image_id: str) -> str:
    """Return the primary key of an image; InvalidRequest when the id or namespace is not valid."""
    if problem := id_problem(image_id) or namespace_problem(namespace):
        raise InvalidRequest(problem)
    return primary_key(namespace, image_id)


@router.get("/images", summary="Get an image")
@needs("read")
async def get_image(
    collection: CollectionDep,
    gateway: GatewayDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
    include_values: Annotated[
        bool, Query(description="Whether the response has the embedding.")
    ] = False,
) -> ImageOut:
    """Return the metadata of an indexed image.

    The id is a query parameter because an id may contain slashes.
    """
    key = key_of(namespace, image_id)
    records = await gateway.call(gateway.store.fetch, collection, [key])
    if key not in records:
        raise no_image(image_id)
    return _image_out(records[key], include_values)


@router.get(
    "/thumbnail",
    summary="Get a thumbnail",
    response_class=Response,
    responses={200: {"content": JPEG}, 304: {}},
)
@needs("read")
async def get_thumbnail(
    collection: CollectionDep,
    gateway: GatewayDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
    if_none_match: Annotated[
        str, Header(description="The ETag of a thumbnail that the client has.")
    ] = "",
) -> Response:
    """Return a small JPEG of an indexed image, without EXIF metadata.

    The response has an ETag and may be cached.
    """
    key = key_of(namespace, image_id)
    try:
        small = await gateway.call(read_thumbnail, gateway.blobs, collection, key)
    except BlobGone as error:
        detail = (
            f"there is no thumbnail of {image_id[:200]!r}; the image is not indexed, "
            "or it was written as a vector"
        )
        raise NotFound(detail) from error
    tag = f'"{hashlib.blake2b(small, digest_size=12).hexdigest()}"'
    headers = {
        "ETag": tag,
        "Cache-Control": f"private, max-age={MAX_AGE_S}",
        "Vary": "Authorization",
    }
    if tag in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(small, headers=headers, media_type="image/jpeg")


@router.delete("/images", summary="Delete an image")
@needs("write")
async def delete_image(
    collection: CollectionDep,
    gateway: GatewayDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> Deleted:
    """Delete an image from the collection, with its thumbnail. The source file stays."""
    key = key_of(namespace, image_id)
    generations = await gateway.call(both_generations, gateway.catalogue, collection)
    known = [
        await gateway.call(gateway.store.fingerprints, generation, [key])
        for generation in generations  # a deletion that broke off may have left one of them
    ]
    if not any(known):
        raise no_image(image_id)
    deletion = Deletion(namespace=namespace, pk=key)
    await gateway.call(gateway.catalogue.record_deletion, collection, deletion)
    for generation in await gateway.call(to_delete_from, gateway.catalogue, collection):
        await delete_rows([key], generation, gateway)
    return Deleted(deleted=1)


@router.post("/vectors", summary="Insert or replace vectors")
@needs("write", body="vectors", parse=parse_vectors)
async def upsert_vectors(
    body: VectorsIn, collection: CollectionDep, gateway: GatewayDep
) -> Upserted:
    """Write images whose embeddings the client has computed; existing images are replaced.

    When a vector is not valid, none of them is written.
    """
    records = await gateway.parse(_records, body, collection, gateway.settings.limits)

    async def upsert(keys: list[str]) -> None:
        rows = [records[pk] for pk in keys]
        await gateway.call(gateway.store.upsert, collection, rows, timeout_s=UPSERT_TIMEOUT_S)

    await write_in_turn(list(records), collection, gateway, upsert)
    await gateway.call(gateway.catalogue.record_write, collection)
    return Upserted(upserted=len(records))


def _records(body: VectorsIn, collection: Collection, limits: Limits) -> dict[str, Record]:
    """The records by primary key."""
    records: dict[str, Record] = {}
    for vector in body.vectors:
        record = _record(vector, body.namespace, collection, limits.metadata_bytes)
        if record.pk in records:
            raise InvalidRequest(f"two vectors have the id {vector.id[:200]!r}")
        records[record.pk] = record
    return records


def _record(
    vector: VectorIn, namespace: str, collection: Collection, metadata_bytes: int
) -> Record:
    key = key_of(namespace, vector.id)
    problem = image_problem(
        collection, vector.id, vector.uri, vector.label, vector.metadata, metadata_bytes
    )
    if problem:
        raise InvalidRequest(f"vector {vector.id[:200]!r}: {problem}")
    try:
        embedding = check_vector(vector.values, collection)
    except InvalidRequest as error:
        raise InvalidRequest(f"vector {vector.id[:200]!r}: {error.detail}") from error
    return Record(
        pk=key,
        id=vector.id,
        namespace=namespace,
        uri=vector.uri or vector.id,
        embedding=embedding,
        content_hash=vector.content_hash,
        label=vector.label,
        bytes=vector.bytes,
        width=vector.width,
        height=vector.height,
        indexed_at=int(time.time() * 1000),
        metadata=vector.metadata,
    )


def _image_out(record: Record, include_values: bool) -> ImageOut:
    return ImageOut(
        id=record.id,
        namespace=record.namespace,
        uri=record.uri,
        label=record.label or None,
        metadata=record.metadata,
        bytes=record.bytes,
        width=record.width,
        height=record.height,
        indexed_at=record.indexed_at,
        values=record.embedding.tolist() if include_values else None,
    )


def no_image(image_id: str) -> NotFound:
    """The error for an image that is not in the collection."""
    return NotFound(f"there is no image {image_id[:200]!r} in the collection")
