"""Reads the form of an upload: stores each file in the blob store as it arrives."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

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
from clipfleet.api.jobs.service import require_webhook_url, webhook_of
from clipfleet.common.blobs import BlobWriter
from clipfleet.common.collection import LABEL_BYTES, Collection, image_problem
from clipfleet.common.errors import InvalidRequest, TooLarge, Unavailable
from clipfleet.common.http.uploads import UploadItem
from clipfleet.common.http.webhooks import WebhookIn
from clipfleet.common.identity import DEFAULT_NAMESPACE, id_problem, namespace_problem, text_problem
from clipfleet.common.ledger import Item, Webhook

BLOB_TIMEOUT_S = 600.0  # for one call to the blob store
WRITE_BYTES = 262_144  # of a file are collected in memory before each write
MAX_FIELD_BYTES = 16_384  # of a field that is not a file, but for `items`
MAX_FIELDS = 100
ITEMS = TypeAdapter(list[UploadItem])


class UploadFields(BaseModel):
    """The fields of the form that are not files."""

    namespace: str = Field(DEFAULT_NAMESPACE, description="Namespace of the images.")
    label: str = Field("", description="A label of all images that have none of their own.")
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


@dataclass(frozen=True)
class Image:
    """An image of a form.

    Attributes:
        item: the image without the label of the form.
        digest: of its file, or what stands in place of it.
        size: the bytes of its file.
        own_label: whether the form gives it a label of its own.
    """

    item: Item
    digest: str
    size: int
    own_label: bool

    def labelled(self, label: str) -> Item:
        """The item, with this label unless it has one of its own."""
        return self.item if self.own_label else self.item.model_copy(update={"label": label})


class UploadForm:
    """Reads one form.

    Args:
        collection: the collection of the images.
        gateway: where the files are stored.
        prefix: the beginning of the keys of the files, without a slash at its end.
        stores: whether the files are written to the blob store.

    Attributes:
        images: the images, in the order of the form.
        webhook: where their job reports its end, once the form is read.
    """

    def __init__(
        self, collection: Collection, gateway: Gateway, prefix: str, *, stores: bool = True
    ) -> None:
        self._collection, self._gateway, self._prefix = collection, gateway, prefix
        self._stores = stores
        self._fields: dict[str, str] = {}
        self._ids: set[str] = set()
        self._items: list[UploadItem] | None = None  # of the field `items`, if there is one
        self._ahead: Iterator[UploadItem] = iter(())  # those that come next
        self._files = 0
        self.images: list[Image] = []
        self.webhook: Webhook | None = None

    async def read(self, request: Request) -> None:
        """Read the whole form. An error is raised at the part that causes it, not at the end.

        Raises:
            RequestValidationError: a part is missing or has the wrong form.
            InvalidRequest: a field, an id, a label or metadata is not valid.
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

    @property
    def fields(self) -> UploadFields:
        """The fields that are not files."""
        return _parse_fields(self._fields)

    @property
    def labelled_items(self) -> list[Item]:
        """The images as items of a job."""
        label = self.fields.label
        return [image.labelled(label) for image in self.images]

    def digest(self) -> str:
        """A digest of the whole form: of ids, labels, metadata and files."""
        digest = hashlib.blake2b(digest_size=16)
        for image in self.images:
            name = image.item.id
            digest.update(f"{len(name)}:{name}{image.size}:{image.digest}".encode())
            if self._items is not None:
                digest.update(details_of(image.item).encode())
        digest.update(self.fields.label.encode())
        return digest.hexdigest()

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
        if (missing := self._without_file()) is not None:
            rows = sum(item.has_file for item in self._items or ())
            raise _invalid(
                "items", f"there are {rows} items for {self._files} files; {missing} has none"
            )
        if not self.images:
            raise _invalid("files", "Field required")
        if self.fields.webhook_secret and not self.fields.webhook_url:
            raise _invalid("webhook_secret", "it needs webhook_url")
        self.webhook = webhook_of(self.fields.webhook(), self._gateway.settings)

    def _without_file(self) -> str | None:
        """Take the items without a file that come next. Return the name of one that misses it."""
        for item in self._ahead:
            if item.has_file:
                return repr(item.id) if item.id else "the last item"
            self._add_without_file(item)
        return None

    async def _read_part(self, part: PartBegin, events: AsyncIterator[FormEvent]) -> None:
        if part.name == "files":
            if part.filename is None:
                raise _invalid("files", "a part called files must be a file with a name")
            await self._read_file(part.filename, events)
        elif part.name == "items":
            await self._read_items(events)
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

    async def _read_items(self, events: AsyncIterator[FormEvent]) -> None:
        if self._items is not None or self._files:
            raise _invalid("items", "give items once, before the files")
        limit, text = self._gateway.settings.limits.job_bytes, bytearray()
        async for data in _data(events):
            reservation().add(len(data))
            text += data
            if len(text) > limit:
                raise TooLarge(
                    f"the field items has more than {limit} bytes (CLIPFLEET_LIMITS__JOB_BYTES)"
                )
        items = await self._gateway.parse(_parse_items, bytes(text))
        self._items = items
        max_files = self._gateway.settings.limits.upload_files
        if len(items) > max_files:
            raise TooLarge(
                f"there are {len(items)} items; the limit is {max_files} "
                "(CLIPFLEET_LIMITS__UPLOAD_FILES)"
            )
        self._ahead = iter(items)

    def _next_item(self, name: str) -> UploadItem:
        """What the form says of the next file."""
        if self._items is None:
            return UploadItem(id=name)
        for item in self._ahead:
            if item.has_file:
                return item if item.id is not None else item.model_copy(update={"id": name})
            self._add_without_file(item)
        rows = sum(item.has_file for item in self._items)
        raise _invalid("items", f"there are {rows} items, and more files than that")

    def _add_without_file(self, entry: UploadItem) -> None:
        item = self._described(entry)
        if entry.content_hash:
            item = item.model_copy(update={"read": f"stored:{entry.content_hash}"})
        self._append(item.model_copy(update={"problem": entry.problem}), _no_file(entry), 0, entry)

    def _append(self, item: Item, digest: str, size: int, entry: UploadItem) -> None:
        self.images.append(Image(item, digest, size, entry.label is not None))

    def _described(self, entry: UploadItem, number: str = "") -> Item:
        """The item of an image, without where its file is.

        Raises:
            InvalidRequest: its id, label or metadata is not valid, or the form has its id already.
        """
        name = entry.id or ""
        if problem := id_problem(name):
            called = (
                "a file name cannot be used as an id" if self._items is None else repr(name[:200])
            )
            raise InvalidRequest(f"{called}: {problem}")
        if name in self._ids:
            raise InvalidRequest(
                f"two files have the id {name[:200]!r}"
                + ("; the name of a file becomes its id" if self._items is None else "")
                + ". Give each its own id, such as its path, in the field items"
            )
        self._ids.add(name)
        uri = f"upload:{self._prefix.removeprefix('uploads/')}/{number}" if number else name
        item = Item(id=name, uri=uri, read="", label=entry.label or "", metadata=entry.metadata)
        limit = self._gateway.settings.limits.metadata_bytes
        problem = image_problem(self._collection, name, uri, item.label, item.metadata, limit)
        if problem:
            raise InvalidRequest(f"file {name[:200]!r}: {problem}")
        return item

    async def _read_file(self, name: str, events: AsyncIterator[FormEvent]) -> None:
        limits = self._gateway.settings.limits
        if len(self.images) >= limits.upload_files:
            raise TooLarge(
                f"the upload has more than {limits.upload_files} files "
                "(CLIPFLEET_LIMITS__UPLOAD_FILES)"
            )
        entry = self._next_item(name)
        number, size = self._files, 0
        item = self._described(entry, str(number))
        self._files += 1
        key = f"{self._prefix}/{number}"
        digest = hashlib.blake2b(digest_size=16)
        async with _stored(key if self._stores else "", self._gateway) as file:
            async for data in _data(events):
                size += len(data)
                digest.update(data)
                if size <= limits.image_bytes:
                    await file.write(data)
        item = item.model_copy(update={"read": f"blob:{key}"})
        if size > limits.image_bytes:
            problem = f"the file has {size} bytes; the limit is {limits.image_bytes}"
            item = item.model_copy(update={"problem": problem})
            if self._stores:
                await self._gateway.call(self._gateway.blobs.delete, key)
        self._append(item, digest.hexdigest(), size, entry)


def details_of(item: Item) -> str:
    """What the form says of an image, as text that differs when it does."""
    return json.dumps([item.label, item.metadata], sort_keys=True)


def _no_file(entry: UploadItem) -> str:
    """What stands in place of the digest of a file."""
    text = entry.content_hash or entry.problem or ""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _parse_items(text: bytes) -> list[UploadItem]:
    try:
        return ITEMS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("items", *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            message = f"not a JSON list of objects: {message}"
        raise _invalid(where, message) from error


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
