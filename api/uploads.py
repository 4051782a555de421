"""Uploads: files that come over HTTP become a job."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Response, UploadFile

from clipfleet.api.access import GuardedRoute, needs
from clipfleet.api.depends import UsesCollection, UsesGateway
from clipfleet.api.gateway import Gateway
from clipfleet.api.jobs import Key, accepted, new_job, require_room, scoped
from clipfleet.api.problems import RESPONSES
from clipfleet.common.collection import LABEL_BYTES
from clipfleet.common.errors import InvalidRequest, TooLarge, Unavailable
from clipfleet.common.identity import DEFAULT_NAMESPACE, id_problem, text_problem
from clipfleet.common.ledger import Item, Job, NewJob
from clipfleet.common.schemas import JobOut
from clipfleet.common.uploads import uploads_of

router = APIRouter(prefix="/v1", tags=["jobs"], responses=RESPONSES, route_class=GuardedRoute)

UPLOAD_S = 600.0


@router.post("/collections/{name}/images", status_code=202, responses={409: RESPONSES[422]})
@needs("write")
async def upload_images(
    collection: UsesCollection,
    gateway: UsesGateway,
    response: Response,
    files: Annotated[list[UploadFile], File(description="images; the file name becomes the id")],
    namespace: Annotated[str, Form()] = DEFAULT_NAMESPACE,
    label: Annotated[str, Form()] = "",
    on_existing: Annotated[Literal["skip", "replace"], Form()] = "skip",
    idempotency_key: Key = "",
) -> JobOut:
    """Index uploaded images. The files are kept as long as the job, so that it can be retried."""
    problem = text_problem("label", label, LABEL_BYTES, empty=True)
    if problem:
        raise InvalidRequest(problem)
    new = new_job(collection, {"type": "upload"}, namespace, on_existing)
    _check_names(files)
    if len(files) > (most := gateway.settings.limits.upload_files):
        raise TooLarge(f"{len(files)} files in one upload; {most} at most")
    key = scoped(idempotency_key, new)
    if key:
        digest = await asyncio.to_thread(_digest, files, label)
        new = new.model_copy(update={"source": {"type": "upload", "digest": digest}})
        if made := await gateway.call(gateway.ledger.made, key):
            return accepted(made, new, response)
    return accepted(await _started(new, files, label, key, gateway), new, response)


async def _started(
    new: NewJob, files: Sequence[UploadFile], label: str, key: str, gateway: Gateway
) -> Job:
    await require_room(gateway)
    await gateway.call(gateway.unfinished.begin, new.id)  # should we not live to make the job
    try:
        items = [
            await _stored(number, file, label, new.id, gateway) for number, file in enumerate(files)
        ]
    except Unavailable:  # there will be no job, so nobody will ever ask for these
        await _forget(new, gateway)
        raise
    new = new.model_copy(update={"source": {**new.source, "items": items}})
    job = await gateway.call(gateway.ledger.create, new, key)
    if job.id != new.id:  # the same key made it while we stored the files
        await _forget(new, gateway)
    with suppress(Unavailable):  # the housekeeper sees that there is a job
        await gateway.call(gateway.unfinished.end, new.id)
    return job


async def _forget(new: NewJob, gateway: Gateway) -> None:
    await gateway.call(gateway.blobs.delete_below, uploads_of(new.id), seconds=UPLOAD_S)


def _digest(files: Sequence[UploadFile], label: str) -> str:
    """Stands for all that was sent: names, order, bytes and the label."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (label, *(file.filename or "" for file in files)):
        digest.update(f"{len(text)}:{text}".encode())
    for file in files:
        digest.update(f"{file.size}:".encode())
        while data := file.file.read(1 << 20):
            digest.update(data)
        file.file.seek(0)
    return digest.hexdigest()


def _check_names(files: Sequence[UploadFile]) -> None:
    names = [file.filename or "" for file in files]
    for name in names:
        if problem := id_problem(name):
            raise InvalidRequest(f"a file name cannot be an id: {problem}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"two files are called {twice[:200]!r}; names become ids")


async def _stored(
    number: int, file: UploadFile, label: str, job_id: str, gateway: Gateway
) -> dict[str, Any]:
    """The item of one file, its bytes in the blob store unless there are too many of them."""
    name, key = file.filename or "", f"{uploads_of(job_id)}/{number}"
    item = Item(id=name, uri=f"upload:{job_id}/{number}", read=f"blob:{key}", label=label)
    limit = gateway.settings.limits.image_bytes
    if (file.size or 0) > limit:
        problem = f"the file has {file.size} bytes; the limit is {limit}"
        return item.model_copy(update={"problem": problem}).model_dump()
    await gateway.call(gateway.blobs.put, key, file.file, seconds=UPLOAD_S)
    return item.model_dump()
