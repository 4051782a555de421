"""Single images: look at one, delete one, bring your own vectors."""

import hashlib
import time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Query, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
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
from clipfleet.common.imaging.thumbnails import MAX_BYTES, thumbnail_key
from clipfleet.common.ledger.catalogue import Deletion
from clipfleet.common.settings import Limits
from clipfleet.common.store import Record

router = APIRouter(
    prefix="/v1/collections/{name}",
    tags=["images"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

UPSERT_S = 60.0
CACHED_S = 3_600
JPEG: dict[str, Any] = {"image/jpeg": {}}
ImageId = Annotated[str, Query(alias="id", min_length=1, max_length=2_048)]
Namespace = Annotated[str, Query(min_length=1, max_length=256)]


def key_of(namespace: str, image_id: str) -> str:
    if problem := id_problem(image_id) or namespace_problem(namespace):
        raise InvalidRequest(problem)
    return primary_key(namespace, image_id)


@router.get("/images")
@needs("read")
async def get_image(
    collection: CollectionDep,
    gateway: GatewayDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
    include_values: bool = False,
) -> ImageOut:
    """One image by id; ids may hold slashes, so they travel as a query parameter."""
    key = key_of(namespace, image_id)
    found = await gateway.call(gateway.store.fetch, collection, [key])
    if key not in found:
        raise _no_image(image_id)
    return _shown(found[key], include_values)


@router.get("/thumbnail", response_class=Response, responses={200: {"content": JPEG}, 304: {}})
@needs("read")
async def get_thumbnail(
    collection: CollectionDep,
    gateway: GatewayDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """A small JPEG of an indexed image, without its metadata. To be cached."""
    key = thumbnail_key(collection, key_of(namespace, image_id))
    try:
        small = await gateway.call(gateway.blobs.get, key, MAX_BYTES)
    except BlobGone as error:
        said = f"there is no thumbnail of {image_id[:200]!r}: not indexed, or given as a vector"
        raise NotFound(said) from error
    tag = f'"{hashlib.blake2b(small, digest_size=12).hexdigest()}"'
    headers = {
        "ETag": tag,
        "Cache-Control": f"private, max-age={CACHED_S}",
        "Vary": "Authorization",
    }
    if tag in if_none_match:
        return Response(status_code=304, headers=headers)
    return Response(small, headers=headers, media_type="image/jpeg")


@router.delete("/images")
@needs("write")
async def delete_image(
    collection: CollectionDep,
    gateway: GatewayDep,
    image_id: ImageId,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> Deleted:
    """Remove one image from the collection. The source file is not touched."""
    key = key_of(namespace, image_id)
    if key not in await gateway.call(gateway.store.fingerprints, collection, [key]):
        raise _no_image(image_id)
    deletion = Deletion(namespace=namespace, pk=key)
    await gateway.call(gateway.catalogue.record_deletion, collection, deletion)
    await gateway.call(gateway.blobs.delete, thumbnail_key(collection, key))
    await gateway.call(gateway.store.delete, collection, [key])
    await gateway.call(gateway.catalogue.record_write, collection)
    return Deleted(deleted=1)


@router.post("/vectors")
@needs("write", body="vectors", parse=parse_vectors)
async def upsert_vectors(
    body: VectorsIn, collection: CollectionDep, gateway: GatewayDep
) -> Upserted:
    """Bring your own embeddings. All of them are written, or, when one is wrong, none."""
    records = await gateway.parse(_records, body, collection, gateway.settings.limits)
    await gateway.call(gateway.store.upsert, collection, records, seconds=UPSERT_S)
    await gateway.call(gateway.catalogue.record_write, collection)
    return Upserted(upserted=len(records))


def _records(body: VectorsIn, collection: Collection, limits: Limits) -> list[Record]:
    records: dict[str, Record] = {}
    for one in body.vectors:
        record = _record(one, body.namespace, collection, limits.metadata_bytes)
        if record.pk in records:
            raise InvalidRequest(f"id {one.id[:200]!r} is given twice")
        records[record.pk] = record
    return list(records.values())


def _record(one: VectorIn, namespace: str, collection: Collection, metadata_bytes: int) -> Record:
    key = key_of(namespace, one.id)
    problem = image_problem(collection, one.id, one.uri, one.label, one.metadata, metadata_bytes)
    if problem:
        raise InvalidRequest(f"vector {one.id[:200]!r}: {problem}")
    check_vector(one.values, collection)
    return Record(
        pk=key,
        id=one.id,
        namespace=namespace,
        uri=one.uri or one.id,
        embedding=np.asarray(one.values, np.float32),
        content_hash=one.content_hash,
        label=one.label,
        bytes=one.bytes,
        width=one.width,
        height=one.height,
        indexed_at=int(time.time() * 1000),
        metadata=one.metadata,
    )


def _shown(record: Record, include_values: bool) -> ImageOut:
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


def _no_image(image_id: str) -> NotFound:
    return NotFound(f"there is no image {image_id[:200]!r} in the collection")
