"""Uploads over HTTP: stores each file in the blob store as it arrives, then creates a job."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CollectionDep, GatewayDep, IdempotencyKey
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.bodies import TooSlow
from clipfleet.api.http.disconnect import ClientGone
from clipfleet.api.http.forms import (
    FormEvent,
    PartBegin,
    PartEnd,
    boundary_of,
    decoded,
    form_events,
)
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.service import (
    accepted,
    job_room,
    new_job,
    require_webhook_url,
    scoped_key,
    webhook_of,
)
from clipfleet.common.blobs import BlobWriter
from clipfleet.common.collection import LABEL_BYTES
from clipfleet.common.errors import InvalidRequest, TooLarge, Unavailable
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.http.webhooks import WebhookIn
from clipfleet.common.identity import DEFAULT_NAMESPACE, id_problem, namespace_problem, text_problem
from clipfleet.common.ledger import UNLIMITED, Item, NewJob, Webhook
from clipfleet.common.ledger.uploads import uploads_of

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)

BLOB_TIMEOUT_S = 600.0  # for one call to the blob store
WRITE_BYTES = 262_144  # of a file are collected in memory before each write
MAX_FIELD_BYTES = 16_384  # of a field that is not a file
MAX_FIELDS = 100


class UploadFields(BaseModel):
    """The fields of the form that are not files."""

    namespace: str = Field(DEFAULT_NAMESPACE, description="Namespace of the images.")
    label: str = Field("", description="A label that all images of this upload get.")
    on_existing: Literal["skip", "replace"] = Field(
        "skip", description="Whether images whose ids are already indexed are skipped or replaced."
    )
    exif: bool = Field(
        False,
        description="Add to the metadata what EXIF says: taken_at, camera, latitude, longitude, "
        "altitude.",
    )
    webhook_url: str = Field(
        "",
        max_length=2_048,
        description="Address to which the end of the job is sent; empty: none.",
    )
    webhook_secret: str = Field(
        "", repr=False, description="Secret for its signature; empty: that of the service."
    )

    def webhook(self) -> WebhookIn | None:
        """The webhook; ValidationError when the secret is not one."""
        if not self.webhook_url:
            return None
        return WebhookIn(url=self.webhook_url, secret=self.webhook_secret or None)


class _UploadForm(UploadFields):
    """Images, and options for all of them."""  # this model serves only the OpenAPI document

    files: list[Annotated[bytes, Field(json_schema_extra={"format": "binary"})]] = Field(
        description="The images. The name of a file becomes the id of the image."
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

    The files are kept as long as the job exists, so that the job can be retried.
    """
    new = new_job(collection, {"type": "upload"}, DEFAULT_NAMESPACE, "skip")
    key, room = scoped_key(idempotency_key, new), job_room(gateway)
    with gateway.uploads.hold():
        existing = await gateway.call(gateway.ledger.find_by_idempotency_key, key) if key else None
        if existing:
            upload = _Upload(new, gateway, digests=True, stores=False)
            await upload.read(request)
            return accepted(existing, upload.job(), response)
        await gateway.call(gateway.ledger.require_room, room)
        upload = _Upload(new, gateway, digests=bool(key))
        async with _recorded_as_unfinished(new, gateway):
            await upload.read(request)
        # The room was required before the upload: an upload that has arrived is not refused.
        room = replace(room, limit=UNLIMITED)
        job = await gateway.call(gateway.ledger.create, upload.job(), key, room)
    if job.id != new.id:  # another request with the same key was faster
        await _delete_files(new, gateway)
    with suppress(Unavailable):  # otherwise the housekeeper sees that the job exists
        await gateway.call(gateway.unfinished.end, new.id)
    return accepted(job, upload.job(), response)


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


class _Upload:
    """Reads one form into a job.

    Args:
        new: the job without the items and the fields of the form.
        gateway: where the files are stored.
        digests: whether the job carries a digest of the whole upload.
        stores: whether the files are written to the blob store.
    """

    def __init__(
        self, new: NewJob, gateway: Gateway, *, digests: bool, stores: bool = True
    ) -> None:
        self._new, self._gateway, self._stores = new, gateway, stores
        self._digest = hashlib.blake2b(digest_size=16) if digests else None
        self._fields: dict[str, str] = {}
        self._names: set[str] = set()
        self._items: list[Item] = []
        self._webhook: Webhook | None = None

    async def read(self, request: Request) -> None:
        """Read the whole form. An error is raised at the part that causes it, not at the end.

        Raises:
            RequestValidationError: a part is missing or has the wrong form.
            InvalidRequest: a field or a file name is not valid.
            TooLarge: the form has too many files or fields, or a field is too long.
            TooSlow: the upload takes longer than CLIPFLEET_LIMITS__UPLOAD_S.
            ClientGone: the client closed the connection.
        """
        limit_s = self._gateway.settings.limits.upload_s
        try:
            async with asyncio.timeout(limit_s):
                await self._read(request)
        except TimeoutError as error:
            detail = f"the upload took longer than {limit_s:g} s (CLIPFLEET_LIMITS__UPLOAD_S)"
            raise TooSlow(detail) from error
        except ClientDisconnect as error:
            raise ClientGone("the client closed the connection during the upload") from error

    def job(self) -> NewJob:
        """Return the job for the form that has been read."""
        fields = _parse_fields(self._fields)
        items = [item.model_copy(update={"label": fields.label}) for item in self._items]
        source: dict[str, Any] = {"type": "upload"}
        if self._digest:
            digest = self._digest.copy()
            digest.update(fields.label.encode())
            source["digest"] = digest.hexdigest()
        source["items"] = [item.model_dump() for item in items]
        changes = {
            "namespace": fields.namespace, "on_existing": fields.on_existing, "source": source,
            "exif": fields.exif, "webhook": self._webhook,
        }  # fmt: skip
        return self._new.model_copy(update=changes)

    async def _read(self, request: Request) -> None:
        boundary = boundary_of(request.headers.get("content-type", ""))
        if boundary is not None:
            events, fields = form_events(boundary, request.stream()), 0
            async for event in events:
                if isinstance(event, PartBegin):
                    fields += event.name != "files"
                    if fields > MAX_FIELDS:
                        raise TooLarge(
                            f"the form has more than {MAX_FIELDS} fields that are not files"
                        )
                    await self._read_part(event, events)
        if not self._items:
            raise _invalid("files", "Field required")
        fields_of_form = _parse_fields(self._fields)
        if fields_of_form.webhook_secret and not fields_of_form.webhook_url:
            raise _invalid("webhook_secret", "it needs webhook_url")
        webhook = fields_of_form.webhook()
        self._webhook = webhook_of(webhook, self._gateway.settings)

    async def _read_part(self, part: PartBegin, events: AsyncIterator[FormEvent]) -> None:
        if part.name == "files":
            if part.filename is None:
                raise _invalid("files", "a part called files must be a file with a name")
            await self._read_file(part.filename, events)
        elif part.name not in UploadFields.model_fields:
            async for _ in _data(events):
                pass
        elif part.filename is not None:
            raise _invalid(part.name, "this field must be text, not a file")
        else:
            await self._read_field(part.name, events)

    async def _read_field(self, name: str, events: AsyncIterator[FormEvent]) -> None:
        text = b""
        async for data in _data(events):
            text += data
            if len(text) > MAX_FIELD_BYTES:
                raise TooLarge(f"the field {name} has more than {MAX_FIELD_BYTES} bytes")
        if text:
            self._fields[name] = decoded(text)
        fields = _parse_fields(self._fields)
        if problem := namespace_problem(fields.namespace):
            raise InvalidRequest(problem)
        if problem := text_problem("label", fields.label, LABEL_BYTES, empty=True):
            raise InvalidRequest(problem)
        try:
            webhook = fields.webhook()
        except ValidationError as error:
            raise _invalid("webhook_secret", error.errors()[0]["msg"]) from None
        if webhook:
            require_webhook_url(webhook.url, self._gateway.settings)

    async def _read_file(self, name: str, events: AsyncIterator[FormEvent]) -> None:
        self._require_new(name)
        limits = self._gateway.settings.limits
        number, size = len(self._items), 0
        key = f"{uploads_of(self._new.id)}/{number}"
        digest = hashlib.blake2b(digest_size=16)
        async with _stored(key if self._stores else "", self._gateway) as file:
            async for data in _data(events):
                size += len(data)
                digest.update(data)
                if size <= limits.image_bytes:
                    await file.write(data)
        item = Item(id=name, uri=f"upload:{self._new.id}/{number}", read=f"blob:{key}")
        if size > limits.image_bytes:
            problem = f"the file has {size} bytes; the limit is {limits.image_bytes}"
            item = item.model_copy(update={"problem": problem})
            if self._stores:
                await self._gateway.call(self._gateway.blobs.delete, key)
        self._items.append(item)
        if self._digest:
            self._digest.update(f"{len(name)}:{name}{size}:{digest.hexdigest()}".encode())

    def _require_new(self, name: str) -> None:
        max_files = self._gateway.settings.limits.upload_files
        if len(self._items) >= max_files:
            raise TooLarge(
                f"the upload has more than {max_files} files (CLIPFLEET_LIMITS__UPLOAD_FILES)"
            )
        if problem := id_problem(name):
            raise InvalidRequest(f"a file name cannot be used as an id: {problem}")
        if name in self._names:
            raise InvalidRequest(
                f"two files are called {name[:200]!r}; the name of a file becomes its id"
            )
        self._names.add(name)


async def _data(events: AsyncIterator[FormEvent]) -> AsyncIterator[bytes]:
    """The data of the current part."""
    async for event in events:
        if isinstance(event, PartEnd):
            return
        assert isinstance(event, bytes)
        yield event


class _File:
    """Collects small pieces of a file and writes them as larger ones, each on a thread.

    Args:
        writer: None to drop the data.
        gateway: whose threads write.
    """

    def __init__(self, writer: BlobWriter | None, gateway: Gateway) -> None:
        self._writer, self._gateway = writer, gateway
        self._buffer = bytearray()

    async def write(self, data: bytes) -> None:
        if self._writer:
            self._buffer += data
            if len(self._buffer) >= WRITE_BYTES:
                await self.flush()

    async def flush(self) -> None:
        if self._writer and self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            await self._gateway.call(self._writer.write, data, timeout_s=BLOB_TIMEOUT_S)


@asynccontextmanager
async def _stored(key: str, gateway: Gateway) -> AsyncIterator[_File]:
    """A file of the blob store, complete at the end of the block. An empty key stores nothing."""
    if not key:
        yield _File(None, gateway)
        return
    writer = await gateway.call(gateway.blobs.create, key, timeout_s=BLOB_TIMEOUT_S)
    file = _File(writer, gateway)
    try:
        yield file
        await file.flush()
    except BaseException:
        with suppress(Unavailable):
            await gateway.call(writer.discard, timeout_s=BLOB_TIMEOUT_S)
        raise
    await gateway.call(writer.close, timeout_s=BLOB_TIMEOUT_S)


def _parse_fields(fields: dict[str, str]) -> UploadFields:
    try:
        return UploadFields.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid(str(first["loc"][0]), first["msg"]) from error


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])
