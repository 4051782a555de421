"""Uploads in several requests: open one, add files to it, then start its one job."""

import hashlib
import io
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CallerDep, CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.service import accepted, job_room, new_job, new_job_id, webhook_of
from clipfleet.api.jobs.upload_form import BLOB_TIMEOUT_S, Image, UploadForm, details_of
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unavailable
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.http.uploads import KnownIn, KnownOut, UploadEnd, UploadIn, UploadOut
from clipfleet.common.identity import id_problem, namespace_problem, primary_key, printable
from clipfleet.common.ledger import Job
from clipfleet.common.ledger.notes import NO_SUFFIX, OTHER_SUFFIXES
from clipfleet.common.ledger.unfinished import OpenUpload, UploadRoom, unknown_upload
from clipfleet.common.ledger.uploads import part_of, parts_of, uploads_of
from clipfleet.common.settings import Limits

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)

AT = "/collections/{name}/uploads/{upload_id}"
UploadId = Annotated[str, Path(max_length=64, description="Id of the upload.")]


class _PartForm(BaseModel):  # this model serves only the OpenAPI document
    """Images of an open upload."""

    label: str = Field("", description="A label of all images that have none of their own.")
    items: str = Field(
        "",
        description="Ids, labels and metadata: a JSON list with an object for each file, in their "
        "order, before the files. An object with `content_hash` or `problem` stands for an image "
        "without a file.",
        examples=['[{"id": "rome/1.jpg", "label": "church", "metadata": {"year": 2024}}]'],
    )
    files: list[Annotated[bytes, Field(json_schema_extra={"format": "binary"})]] = Field(
        [],
        description="The images. The name of a file becomes the id of the image, unless `items` "
        "gives another one.",
    )


@router.post(
    "/collections/{name}/uploads",
    status_code=201,
    summary="Open an upload",
    responses={409: CONFLICT},
)
@needs("write")
async def open_upload(
    body: UploadIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
    response: Response,
) -> UploadOut:
    """Open an upload that takes files in several requests and becomes one job.

    Add files with `POST .../uploads/{id}/images`, then start the job with
    `POST .../uploads/{id}/job`. An upload that gets nothing for a day is deleted with its files.
    """
    if problem := namespace_problem(body.namespace):
        raise InvalidRequest(problem)
    upload = OpenUpload(
        id=new_job_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=body.namespace,
        on_existing=body.on_existing,
        exif=body.exif,
        caller=caller.name,
        key=body.key,
        created_at=time.time(),
    )
    upload = await gateway.call(gateway.unfinished.open, upload, _room(gateway))
    response.headers["Location"] = f"/v1/collections/{collection.name}/uploads/{upload.id}"
    return await _shown(upload, gateway)


@router.get(AT, summary="Get an open upload")
@needs("write")
async def get_upload(
    upload_id: UploadId, collection: CollectionDep, gateway: GatewayDep, caller: CallerDep
) -> UploadOut:
    """Return how much an open upload has got."""
    upload, _ = await _find(upload_id, collection, gateway, caller.name)
    return await _shown(upload, gateway)


@router.delete(AT, status_code=204, summary="Delete an open upload")
@needs("write")
async def delete_upload(
    upload_id: UploadId, collection: CollectionDep, gateway: GatewayDep, caller: CallerDep
) -> None:
    """Delete an open upload with its files. No job starts."""
    upload, _ = await _find(upload_id, collection, gateway, caller.name)
    if await _started(upload.id, gateway) is None:
        await gateway.call(gateway.unfinished.close, upload.id)
        prefix = uploads_of(upload.id)
        await gateway.call(gateway.blobs.delete_below, prefix, timeout_s=BLOB_TIMEOUT_S)
    await gateway.call(gateway.unfinished.end, upload.id)


@router.post(f"{AT}/known", summary="Ask what need not be sent")
@needs("write", body="job")
async def get_known(
    body: KnownIn,
    upload_id: UploadId,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
) -> KnownOut:
    """Return what the upload has got of these images, and which the collection has already.

    A client compares its files with that. It need not send a file that was received. For an image
    that the collection has, it may send `content_hash` in `items` in place of the file.
    """
    upload, target = await _find(upload_id, collection, gateway, caller.name)
    for image_id in body.ids:
        if problem := id_problem(image_id):
            raise InvalidRequest(f"{image_id[:200]!r}: {problem}")
    keys = [primary_key(upload.namespace, image_id) for image_id in body.ids]
    received = await gateway.call(gateway.unfinished.digests, upload.id, keys)
    stored = await gateway.call(gateway.store.fingerprints, target, keys)
    hashes = [stored[key].content_hash if key in stored else "" for key in keys]
    return KnownOut(
        received=[digest[:32] or None for digest in received],
        stored=[content_hash or None for content_hash in hashes],
    )


@router.post(
    f"{AT}/images",
    summary="Add images to an upload",
    openapi_extra={
        "requestBody": {
            "content": {"multipart/form-data": {"schema": _PartForm.model_json_schema()}},
            "required": True,
        }
    },
)
@needs("write", body="upload")
async def add_images(
    request: Request,
    upload_id: UploadId,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
) -> UploadOut:
    """Add the images of a multipart form to an open upload.

    A request that is sent again adds nothing. An image whose id the upload has already takes the
    place of the earlier one. When the request fails, it has added nothing.
    """
    upload, _ = await _find(upload_id, collection, gateway, caller.name)
    part = secrets.token_hex(6)
    prefix = f"{uploads_of(upload.id)}/{part}"
    with gateway.uploads.hold():
        await gateway.call(gateway.unfinished.begin, upload.id)  # it goes on
        form = UploadForm(collection, gateway, prefix)
        async with _deleting_on(BaseException, prefix, gateway):
            await form.read(request)
            new, size = await _stored(upload, part, form, gateway)
        if new:
            # After any other error the part may have been added, and then its files are needed.
            async with _deleting_on((NotFound, TooLarge), prefix, gateway):
                room = _room(gateway)
                await gateway.call(gateway.unfinished.add, upload.id, part, new, size, room)
    return await _shown(upload, gateway)


@asynccontextmanager
async def _deleting_on(
    errors: type[BaseException] | tuple[type[BaseException], ...], prefix: str, gateway: Gateway
) -> AsyncIterator[None]:
    """Delete the files of a part when the block raises one of these errors."""
    try:
        yield
    except errors:
        with suppress(Unavailable):  # the files go with the upload at the latest
            await gateway.call(gateway.blobs.delete_below, prefix, timeout_s=BLOB_TIMEOUT_S)
        raise


async def _stored(
    upload: OpenUpload, part: str, form: UploadForm, gateway: Gateway
) -> tuple[dict[str, str], int]:
    """Store the list of what is new in a form that was read.

    Returns:
        The digests of the new images by primary key, and the bytes of their files.
    """
    label, namespace = form.fields.label, upload.namespace
    digests = {
        primary_key(namespace, image.item.id): _digest(image, label) for image in form.images
    }
    before = await gateway.call(gateway.unfinished.digests, upload.id, list(digests))
    known = dict(zip(digests, before, strict=True))
    new = {key: digest for key, digest in digests.items() if known[key] != digest}
    rows = zip(digests, form.images, strict=True)
    images = [image for key, image in rows if key in new]
    if not images:
        prefix = f"{uploads_of(upload.id)}/{part}"
        await gateway.call(gateway.blobs.delete_below, prefix, timeout_s=BLOB_TIMEOUT_S)
        return {}, 0
    items = [image.labelled(label).model_dump(exclude_defaults=True) for image in images]
    await _put(part_of(upload.id, part), items, gateway)
    return new, sum(image.size for image in images)


def _digest(image: Image, label: str) -> str:
    """The digest of a file, and of what the form says of it."""
    details = details_of(image.labelled(label)).encode()
    return image.digest + hashlib.blake2b(details, digest_size=8).hexdigest()


@router.post(
    f"{AT}/job",
    status_code=202,
    summary="Start the job of an upload",
    responses={409: CONFLICT},
)
@needs("write")
async def start_upload(
    upload_id: UploadId,
    collection: CollectionDep,
    gateway: GatewayDep,
    caller: CallerDep,
    response: Response,
    body: UploadEnd | None = None,
) -> JobOut:
    """Start the job that indexes the images of an upload. It has the id of the upload.

    The upload takes no more files then. A request that is sent again returns the same job.
    """
    end = body or UploadEnd()
    try:
        upload, target = await _find(upload_id, collection, gateway, caller.name)
    except NotFound:
        started = await _started(upload_id, gateway)
        if started is None or not await _is_of(started, collection, gateway, caller.name):
            raise
        return accepted(started, started.new, response)
    webhook = webhook_of(end.webhook, gateway.settings)
    await gateway.call(gateway.ledger.require_room, job_room(gateway))
    received = await gateway.call(gateway.unfinished.received, upload.id)
    if received.images < end.images:
        raise Conflict(
            f"the upload has {received.images} images, not {end.images}: the service has lost "
            "some, or they were not sent. Send what is missing, and start the job again",
            images=received.images,
        )
    await gateway.call(gateway.unfinished.close, upload.id)
    received = await gateway.call(gateway.unfinished.received, upload.id)
    parts = await gateway.call(gateway.unfinished.parts, upload.id)
    await _put(parts_of(upload.id), parts, gateway)
    source: dict[str, Any] = {
        "type": "upload", "images": received.images, "resent": received.resent,
        "name": printable(end.name), "notes": _notes(end.left_out),
    }  # fmt: skip
    new = new_job(
        target, source, upload.namespace, upload.on_existing, exif=upload.exif, webhook=webhook
    )
    new = new.model_copy(update={"id": upload.id})
    job = await gateway.call(gateway.ledger.create, new, "", job_room(gateway))
    with suppress(Unavailable):  # otherwise the housekeeper sees that the job exists
        await gateway.call(gateway.unfinished.end, upload.id)
    return accepted(job, job.new, response)


async def _find(
    upload_id: str, collection: Collection, gateway: Gateway, caller: str
) -> tuple[OpenUpload, Collection]:
    """The open upload of this caller, and the generation that its images belong into.

    Raises:
        NotFound: the caller has none of this id.
    """
    upload = await gateway.call(gateway.unfinished.find, upload_id)
    target = await _target(upload.generation, collection, gateway)
    if target is None or (upload.collection, upload.caller) != (collection.name, caller):
        raise unknown_upload(upload_id)
    return upload, target


async def _target(generation: str, collection: Collection, gateway: Gateway) -> Collection | None:
    """The generation that an upload was opened for, as long as a migration keeps it beside that
    with the name; then the one with the name. None: the collection was deleted meanwhile.
    """
    if generation == collection.generation:
        return collection
    migration = await gateway.call(gateway.catalogue.migration, collection.name)
    is_first = generation == collection.snapshots  # of several migrations
    if migration is None or not (is_first or migration.concerns(generation, collection.generation)):
        return None
    return migration.generation(generation) or collection


async def _started(upload_id: str, gateway: Gateway) -> Job | None:
    """The job that an upload has become; None when it has not."""
    try:
        return await gateway.call(gateway.ledger.job, upload_id)
    except NotFound:
        return None


async def _is_of(job: Job, collection: Collection, gateway: Gateway, caller: str) -> bool:
    of = (job.new.collection, job.new.source.get("type"), job.key)
    if of != (collection.name, "upload", caller):
        return False
    return await _target(job.new.generation, collection, gateway) is not None


async def _shown(upload: OpenUpload, gateway: Gateway) -> UploadOut:
    received = await gateway.call(gateway.unfinished.received, upload.id)
    return UploadOut(
        id=upload.id,
        collection=upload.collection,
        namespace=upload.namespace,
        images=received.images,
        bytes=received.bytes,
        created_at=upload.created_at,
    )


async def _put(key: str, rows: Sequence[Any], gateway: Gateway) -> None:
    data = io.BytesIO(json.dumps(rows).encode())
    await gateway.call(gateway.blobs.put, key, data, timeout_s=BLOB_TIMEOUT_S)


def _notes(left_out: dict[str, int]) -> dict[str, int]:
    """Counts of files that were left out, as the notes of a job."""
    notes: dict[str, int] = {}
    for suffix, count in left_out.items():
        dotted = suffix if suffix.startswith(".") and len(suffix) > 1 else OTHER_SUFFIXES
        name = printable(dotted)[:20] if suffix else NO_SUFFIX
        notes[name] = notes.get(name, 0) + count
    return notes


def _room(gateway: Gateway) -> UploadRoom:
    limits: Limits = gateway.settings.limits
    return UploadRoom(limits.open_uploads, limits.open_upload_images, limits.open_upload_bytes)
