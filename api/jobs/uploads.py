"""Uploads over HTTP in one request: the files are stored as they arrive, then a job is created."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CollectionDep, GatewayDep, IdempotencyKey
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.service import accepted, job_room, new_job, scoped_key
from clipfleet.api.jobs.upload_form import BLOB_TIMEOUT_S, UploadFields, UploadForm
from clipfleet.common.errors import Unavailable
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.identity import DEFAULT_NAMESPACE
from clipfleet.common.ledger import UNLIMITED, NewJob
from clipfleet.common.ledger.uploads import uploads_of

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)


class _UploadForm(UploadFields):
    """Images, and options for all of them."""  # this model serves only the OpenAPI document

    items: str = Field(
        "",
        description="Ids, labels and metadata: a JSON list with an object for each file, in their "
        "order, before the files. All of its fields are optional.",
        examples=['[{"id": "rome/1.jpg", "label": "church", "metadata": {"year": 2024}}]'],
    )
    files: list[Annotated[bytes, Field(json_schema_extra={"format": "binary"})]] = Field(
        description="The images. The name of a file becomes the id of the image, unless `items` "
        "gives another one."
    )


FORM = {"content": {"multipart/form-data": {"schema": _UploadForm.model_json_schema()}}}


@router.post(
    "/collections/{name}/images",
    status_code=202,
    summary="Upload images",
    responses={409: CONFLICT},
    openapi_extra={"requestBody": {**FORM, "required": True}},
)
@needs("write", body="upload")
async def upload_images(
    request: Request,
    collection: CollectionDep,
    gateway: GatewayDep,
    response: Response,
    idempotency_key: IdempotencyKey = "",
) -> JobOut:
    """Upload images as a multipart form and start a job that indexes them.

    The files are kept as long as the job exists, so that the job can be retried. For more files
    than one request may have, open an upload.
    """
    new = new_job(collection, {"type": "upload"}, DEFAULT_NAMESPACE, "skip")
    key, room = scoped_key(idempotency_key, new), job_room(gateway)
    prefix = uploads_of(new.id)
    with gateway.uploads.hold():
        existing = await gateway.call(gateway.ledger.find_by_idempotency_key, key) if key else None
        if existing:
            form = UploadForm(collection, gateway, prefix, stores=False)
            await form.read(request)
            return accepted(existing, _job(new, form, digests=True), response)
        await gateway.call(gateway.ledger.require_room, room)
        form = UploadForm(collection, gateway, prefix)
        async with _recorded_as_unfinished(new, gateway):
            await form.read(request)
        # The room was required before the upload: an upload that has arrived is not refused.
        room = replace(room, limit=UNLIMITED)
        whole = _job(new, form, digests=bool(key))
        job = await gateway.call(gateway.ledger.create, whole, key, room)
    if job.id != new.id:  # another request with the same key was faster
        await _delete_files(new, gateway)
    with suppress(Unavailable):  # otherwise the housekeeper sees that the job exists
        await gateway.call(gateway.unfinished.end, new.id)
    return accepted(job, whole, response)


def _job(new: NewJob, form: UploadForm, *, digests: bool) -> NewJob:
    """The job for a form that has been read.

    Args:
        new: the job without the items and the fields of the form.
        digests: whether the job carries a digest of the whole form.
    """
    fields = form.fields
    source: dict[str, Any] = {"type": "upload"}
    if digests:
        source["digest"] = form.digest()
    source["items"] = [item.model_dump() for item in form.labelled_items]
    changes = {
        "namespace": fields.namespace, "on_existing": fields.on_existing, "source": source,
        "exif": fields.exif, "webhook": form.webhook,
    }  # fmt: skip
    return new.model_copy(update=changes)


@asynccontextmanager
async def _recorded_as_unfinished(new: NewJob, gateway: Gateway) -> AsyncIterator[None]:
    """Record the upload for the length of the block, since its job does not exist yet.

    When the block raises, the stored files are deleted. The housekeeper deletes those that cannot
    be deleted here.
    """
    await gateway.call(gateway.unfinished.begin, new.id)
    try:
        yield
    except BaseException as error:
        with suppress(Unavailable):
            await _delete_files(new, gateway)
            if not isinstance(error, Unavailable):  # after a timeout a thread may still be writing
                await gateway.call(gateway.unfinished.end, new.id)
        raise


async def _delete_files(new: NewJob, gateway: Gateway) -> None:
    await gateway.call(gateway.blobs.delete_below, uploads_of(new.id), timeout_s=BLOB_TIMEOUT_S)
