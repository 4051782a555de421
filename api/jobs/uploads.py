"""Uploads: files that come over HTTP become a job. Each goes into the blob store as it comes in."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.bodies import TooSlow, reservation
from clipfleet.api.http.disconnect import ClientGone
from clipfleet.api.http.forms import (
    FormEvent,
    PartBegin,
    PartEnd,
    boundary_of,
    decoded,
    form_events,
)
from clipfleet.api.http.problems import RESPONSES
from clipfleet.api.jobs.service import Key, accepted, new_job, require_room, scoped
from clipfleet.common.blobs import BlobWriter
from clipfleet.common.collection import LABEL_BYTES
from clipfleet.common.errors import InvalidRequest, TooLarge, Unavailable
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.identity import DEFAULT_NAMESPACE, id_problem, namespace_problem, text_problem
from clipfleet.common.ledger import Item, NewJob
from clipfleet.common.ledger.uploads import uploads_of

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=AuthorizedRoute)

STORE_S = 600.0  # one call to the blob store
WRITE_BYTES = 262_144  # held of a file before it is written on
TEXT_BYTES = 16_384  # of a field that is no file
MOST_FIELDS = 100


class UploadFields(BaseModel):
    """The fields of the form beside its files."""

    namespace: str = DEFAULT_NAMESPACE
    label: str = ""
    on_existing: Literal["skip", "replace"] = "skip"


class _UploadForm(UploadFields):
    """For the OpenAPI document alone."""

    files: list[Annotated[bytes, Field(json_schema_extra={"format": "binary"})]] = Field(
        description="images; the file name becomes the id"
    )


FORM = {"content": {"multipart/form-data": {"schema": _UploadForm.model_json_schema()}}}


@router.post(
    "/collections/{name}/images",
    status_code=202,
    responses={409: RESPONSES[422]},
    openapi_extra={"requestBody": {**FORM, "required": True}},
)
@needs("write", body="upload")
async def upload_images(
    request: Request,
    collection: CollectionDep,
    gateway: GatewayDep,
    response: Response,
    idempotency_key: Key = "",
) -> JobOut:
    """Index uploaded images. The files are kept as long as the job, so that it can be retried."""
    new = new_job(collection, {"type": "upload"}, DEFAULT_NAMESPACE, "skip")
    key = scoped(idempotency_key, new)
    with gateway.uploads.slot(reservation().caller):
        made = await gateway.call(gateway.ledger.find_by_idempotency_key, key) if key else None
        if made:
            upload = _Upload(new, gateway, digests=True, stores=False)
            await upload.read(request)
            return accepted(made, upload.job(), response)
        await require_room(gateway)
        upload = _Upload(new, gateway, digests=bool(key))
        async with _noted(new, gateway):
            await upload.read(request)
        job = await gateway.call(gateway.ledger.create, upload.job(), key)
    if job.id != new.id:  # the same key made it while we stored the files
        await _forget(new, gateway)
    with suppress(Unavailable):  # the housekeeper sees that there is a job
        await gateway.call(gateway.unfinished.end, new.id)
    return accepted(job, upload.job(), response)


@asynccontextmanager
async def _noted(new: NewJob, gateway: Gateway) -> AsyncIterator[None]:
    """While files are stored for a job that does not exist yet. Nothing of them stays behind when
    it breaks off; what cannot be removed now is left to the housekeeper."""
    await gateway.call(gateway.unfinished.begin, new.id)
    try:
        yield
    except BaseException as error:
        with suppress(Unavailable):
            await _forget(new, gateway)
            if not isinstance(error, Unavailable):  # or a thread may be writing still
                await gateway.call(gateway.unfinished.end, new.id)
        raise


async def _forget(new: NewJob, gateway: Gateway) -> None:
    await gateway.call(gateway.blobs.delete_below, uploads_of(new.id), seconds=STORE_S)


class _Upload:
    """One upload as it is read: `new` as it will be, but for what the form says.

    Args:
        digests: whether the job carries a digest of all that was sent.
        stores: whether the files go into the blob store.
    """

    def __init__(
        self, new: NewJob, gateway: Gateway, *, digests: bool, stores: bool = True
    ) -> None:
        self._new, self._gateway, self._stores = new, gateway, stores
        self._digest = hashlib.blake2b(digest_size=16) if digests else None
        self._fields: dict[str, str] = {}
        self._names: set[str] = set()
        self._items: list[Item] = []

    async def read(self, request: Request) -> None:
        """All of the form. What is wrong with it is said when it is seen, not at the end."""
        limit_s = self._gateway.settings.limits.upload_s
        try:
            async with asyncio.timeout(limit_s):
                await self._read(request)
        except TimeoutError as error:
            said = f"the upload took longer than {limit_s:g} s (CLIPFLEET_LIMITS__UPLOAD_S)"
            raise TooSlow(said) from error
        except ClientDisconnect as error:
            raise ClientGone("the client hung up before all was sent") from error

    def job(self) -> NewJob:
        """What is to be made of it."""
        fields = _checked(self._fields)
        items = [item.model_copy(update={"label": fields.label}) for item in self._items]
        source: dict[str, Any] = {"type": "upload"}
        if self._digest:
            whole = self._digest.copy()
            whole.update(fields.label.encode())
            source["digest"] = whole.hexdigest()
        source["items"] = [item.model_dump() for item in items]
        told = {"namespace": fields.namespace, "on_existing": fields.on_existing}
        return self._new.model_copy(update={**told, "source": source})

    async def _read(self, request: Request) -> None:
        boundary = boundary_of(request.headers.get("content-type", ""))
        if boundary is not None:
            events, fields = form_events(boundary, request.stream()), 0
            async for event in events:
                if isinstance(event, PartBegin):
                    fields += event.name != "files"
                    if fields > MOST_FIELDS:
                        raise TooLarge(f"more than {MOST_FIELDS} fields beside the files")
                    await self._part(event, events)
        if not self._items:
            raise _invalid("files", "Field required")

    async def _part(self, part: PartBegin, events: AsyncIterator[FormEvent]) -> None:
        if part.name == "files":
            if part.filename is None:
                raise _invalid("files", "a file is expected, and this one has no name")
            await self._file(part.filename, events)
        elif part.name not in UploadFields.model_fields:
            async for _ in _data(events):
                pass
        elif part.filename is not None:
            raise _invalid(part.name, "text is expected, not a file")
        else:
            await self._field(part.name, events)

    async def _field(self, name: str, events: AsyncIterator[FormEvent]) -> None:
        text = b""
        async for data in _data(events):
            text += data
            if len(text) > TEXT_BYTES:
                raise TooLarge(f"the field {name} has more than {TEXT_BYTES} bytes")
        if text:
            self._fields[name] = decoded(text)
        fields = _checked(self._fields)
        if problem := namespace_problem(fields.namespace):
            raise InvalidRequest(problem)
        if problem := text_problem("label", fields.label, LABEL_BYTES, empty=True):
            raise InvalidRequest(problem)

    async def _file(self, name: str, events: AsyncIterator[FormEvent]) -> None:
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
        most = self._gateway.settings.limits.upload_files
        if len(self._items) >= most:
            said = f"more than {most} files in one upload (CLIPFLEET_LIMITS__UPLOAD_FILES)"
            raise TooLarge(said)
        if problem := id_problem(name):
            raise InvalidRequest(f"a file name cannot be an id: {problem}")
        if name in self._names:
            raise InvalidRequest(f"two files are called {name[:200]!r}; names become ids")
        self._names.add(name)


async def _data(events: AsyncIterator[FormEvent]) -> AsyncIterator[bytes]:
    """To the end of the part that began last."""
    async for event in events:
        if isinstance(event, PartEnd):
            return
        assert isinstance(event, bytes)
        yield event


class _File:
    """Written on in pieces, each by a call on a thread."""

    def __init__(self, writer: BlobWriter | None, gateway: Gateway) -> None:
        self._writer, self._gateway = writer, gateway
        self._waiting = bytearray()

    async def write(self, data: bytes) -> None:
        if self._writer:
            self._waiting += data
            if len(self._waiting) >= WRITE_BYTES:
                await self.flush()

    async def flush(self) -> None:
        if self._writer and self._waiting:
            data, self._waiting = bytes(self._waiting), bytearray()
            await self._gateway.call(self._writer.write, data, seconds=STORE_S)


@asynccontextmanager
async def _stored(key: str, gateway: Gateway) -> AsyncIterator[_File]:
    """A file of the blob store, complete at the end of the block. `key`: "" to store nothing."""
    if not key:
        yield _File(None, gateway)
        return
    writer = await gateway.call(gateway.blobs.create, key, seconds=STORE_S)
    file = _File(writer, gateway)
    try:
        yield file
        await file.flush()
    except BaseException:
        with suppress(Unavailable):
            await gateway.call(writer.discard, seconds=STORE_S)
        raise
    await gateway.call(writer.close, seconds=STORE_S)


def _checked(fields: dict[str, str]) -> UploadFields:
    try:
        return UploadFields.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid(str(first["loc"][0]), first["msg"]) from error


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])
