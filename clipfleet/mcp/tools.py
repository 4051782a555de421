"""The tools that an assistant calls. Their docstrings and descriptions are for the assistant.

All of them only read.
"""

import base64
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent
from pydantic import Field

from clipfleet.client import AsyncClient
from clipfleet.common.http.request import Request
from clipfleet.common.http.schemas import JobState
from clipfleet.errors import NotFound
from clipfleet.mcp.pictures import LocalImages
from clipfleet.results import Job, Match

MAX_PICTURES = 20  # in one answer
MAX_PICTURE_BYTES = 700_000  # of all pictures of an answer, in base64: hosts refuse above 1 MB
MAX_TOP_K = 100
MAX_TEXT = 300  # characters of a text in metadata, items of a list
MAX_FAILURES = 20
MOMENTS = {"created_at", "started_at", "finished_at"}  # of a job
NOT_WEIGHT = -0.5  # as in the command line

Content = list[TextContent | ImageContent]


class Term(Request):
    """A term of a weighted mix: exactly one of `text`, `image` and `id`."""

    text: str | None = Field(None, description="Words.")
    image: str | None = Field(None, description="An image, as in `image`.")
    id: str | None = Field(None, description="Id of an image of the collection.")
    weight: float = Field(1.0, description="Weight. Negative: matches do not resemble this.")


# "" stands for none: the SDK reads JSON in arguments that may be anything but a text.
Words = Annotated[str, Field(description="Words to search by, such as 'a dog in the snow'.")]
Picture = Annotated[
    str,
    Field(
        description="Image to search by: an http(s) URL, a data URI (data:image/png;base64,...), "
        "or the path of a file below the folders that the user has allowed."
    ),
]
ImageId = Annotated[str, Field(description="Id of an image of the collection.")]
ImageIds = Annotated[
    list[str], Field(min_length=1, max_length=MAX_PICTURES, description="Ids of the images.")
]
Unlike = Annotated[str, Field(description="Words that matches should not resemble.")]
Terms = Annotated[
    list[Term] | None,
    Field(description="A mix with weights, in place of text, image, id and not_text."),
]
Filter = Annotated[
    dict[str, Any] | None,
    Field(
        description="Metadata filter as in MongoDB, on label and metadata fields: "
        '{"label": {"$in": ["cat", "dog"]}, "year": {"$gte": 2020}}.'
    ),
]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K, description="Number of matches.")]
Offset = Annotated[int, Field(ge=0, description="Matches to skip, for the next page.")]
Pictures = Annotated[
    int,
    Field(ge=0, le=MAX_PICTURES, description="Number of matches whose pictures are returned."),
]
Collection = Annotated[
    str, Field(description="Name of the collection. Default: what `collections` calls default.")
]
Namespace = Annotated[str, Field(description="Namespace of the images.")]
JobsOf = Annotated[str, Field(description="List only jobs of this collection.")]
State = Annotated[JobState | Literal[""], Field(description="List only jobs in this state.")]
Limit = Annotated[int, Field(ge=1, le=100, description="Number of jobs.")]
JobId = Annotated[str, Field(description="Id of the job.")]


@dataclass(frozen=True)
class Place:
    """A namespace of a collection."""

    collection: str
    namespace: str


class Tools:
    """The tools.

    Args:
        client: a client of the service.
        local: the images of this machine that may be sent to it.
        collection: the collection to use where a call names none.
    """

    def __init__(self, client: AsyncClient, local: LocalImages, collection: str) -> None:
        self._client, self._local, self._default = client, local, collection

    def all(self) -> list[Callable[..., Any]]:
        return [self.search, self.similar, self.images, self.collections, self.jobs, self.job]

    async def search(
        self,
        text: Words = "",
        image: Picture = "",
        id: ImageId = "",
        not_text: Unlike = "",
        terms: Terms = None,
        filter: Filter = None,
        top_k: TopK = 10,
        offset: Offset = 0,
        pictures: Pictures = 4,
        collection: Collection = "",
        namespace: Namespace = "default",
    ) -> Content:
        """Find images by words (text), by an image, by the id of an indexed image, or by several of
        them together: "at night" with an image finds images like it, but at night. not_text moves
        the search away from words. Returns matches, the nearest first, and pictures of the best.
        """
        query = await self._query(text, image, id, not_text, terms)
        place = Place(collection or self._default, namespace)
        async with self._naming(place):
            result = await self._client.search(
                place.collection,
                **query,
                top_k=top_k,
                offset=offset,
                filter=filter,
                namespace=namespace,
            )
        return await self._answer(place, result.matches, pictures, result.truncated)

    async def similar(
        self,
        id: ImageId,
        filter: Filter = None,
        top_k: TopK = 10,
        pictures: Pictures = 4,
        collection: Collection = "",
        namespace: Namespace = "default",
    ) -> Content:
        """Find the images most similar to an indexed image, which is left out itself."""
        place = Place(collection or self._default, namespace)
        async with self._naming(place):
            result = await self._client.search(
                place.collection, id=id, top_k=top_k + 1, filter=filter, namespace=namespace
            )
        others = [match for match in result.matches if match.id != id][:top_k]
        return await self._answer(place, others, pictures, result.truncated)

    async def images(
        self, ids: ImageIds, collection: Collection = "", namespace: Namespace = "default"
    ) -> Content:
        """Look at indexed images: label, metadata, size, and the picture itself."""
        place = Place(collection or self._default, namespace)
        rows = []
        for name in ids:
            async with self._naming(place):
                image = await self._client.image(place.collection, name, namespace=namespace)
            row = image.model_dump(exclude={"values", "namespace"})
            moment = _moment(image.indexed_at / 1_000)
            rows.append({**row, "metadata": _short(image.metadata), "indexed_at": moment})
        return [_json({"images": rows}), *await self._pictures(place, ids)]

    async def collections(self) -> Content:
        """List the collections: name, number of images, model, metric, and the metadata fields that
        filters find fast.
        """
        shown = {"name", "count", "model", "metric", "fields"}
        rows = [item.model_dump(include=shown) for item in await self._client.collections()]
        return [_json({"collections": rows, "default": self._default})]

    async def jobs(self, collection: JobsOf = "", state: State = "", limit: Limit = 10) -> Content:
        """List indexing jobs, the newest first: source, state, and counts of images."""
        jobs = await self._client.jobs(limit, collection=collection or None, state=state or None)
        return [_json({"jobs": [_job(job) for job in jobs]})]

    async def job(self, id: JobId) -> Content:
        """Look at one indexing job, with the images that failed in it and the reasons."""
        job = await self._client.job(id)
        page = await self._client.failures(id, MAX_FAILURES)
        rows = [failure.model_dump(include={"id", "uri", "reason"}) for failure in page.failures]
        return [_json({**_job(job), **({"failures": rows} if rows else {})})]

    @asynccontextmanager
    async def _naming(self, place: Place) -> AsyncIterator[None]:
        """Name the collections there are if the one of a request does not exist."""
        try:
            yield
        except NotFound as error:
            names = [item.name for item in await self._client.collections()]
            if place.collection in names:
                raise
            known = ", ".join(names) or "none"
            missing = f"there is no collection {place.collection!r}; there are: {known}"
            raise ToolError(missing) from error

    async def _query(
        self, text: str, image: str, id: str, not_text: str, terms: Sequence[Term] | None
    ) -> dict[str, Any]:
        """The arguments of the client's `search`. ToolError if they are not valid."""
        if terms is None:
            named = [Term(text=text), Term(image=image), Term(id=id)]
            terms = [term for term in named if _ways(term)]
            terms += [Term(text=not_text, weight=NOT_WEIGHT)] if not_text else []
        elif text or image or id or not_text:
            raise ToolError("give either terms, or text, image, id and not_text")
        if not any(term.weight > 0 for term in terms):
            raise ToolError("give text, image or id, or terms of which one has a weight above 0")
        ready = [await self._term(term) for term in terms]
        if len(ready) == 1:
            return {name: value for name, value in ready[0].items() if name != "weight"}
        return {"terms": ready}

    async def _term(self, term: Term) -> dict[str, Any]:
        ways = _ways(term)
        if len(ways) != 1:
            raise ToolError("each of terms has exactly one of text, image and id")
        if image := ways.get("image"):
            ways["image"] = await to_thread.run_sync(partial(self._local.load, image))
        return {**ways, "weight": term.weight}

    async def _answer(
        self, place: Place, matches: Sequence[Match], pictures: int, truncated: str | None
    ) -> Content:
        more = {"truncated": truncated} if truncated else {}
        listed = _json({"matches": [_match(match) for match in matches], **more})
        return [listed, *await self._pictures(place, [match.id for match in matches[:pictures]])]

    async def _pictures(self, place: Place, ids: Sequence[str]) -> Content:
        """The thumbnails, each after its id, as far as an answer has room for them."""
        blocks: Content = []
        remaining = MAX_PICTURE_BYTES
        for name in ids:
            try:
                thumbnail = await self._client.thumbnail(
                    place.collection, name, namespace=place.namespace
                )
            except NotFound:  # vectors that were upserted have none
                blocks.append(_text(f"{name}: no picture"))
                continue
            data = base64.b64encode(thumbnail).decode()
            remaining -= len(data)
            if remaining < 0:
                blocks.append(_text("The answer has no room for more pictures."))
                break
            picture = ImageContent(type="image", data=data, mime_type="image/jpeg")
            blocks += [_text(f"{name}:"), picture]
        return blocks


def _ways(term: Term) -> dict[str, Any]:
    """What a term searches by."""
    return {name: value for name, value in term.model_dump(exclude={"weight"}).items() if value}


def _match(match: Match) -> dict[str, Any]:
    is_known = match.uri in ("", match.id) or match.uri.startswith("upload:")
    uri = {} if is_known else {"uri": match.uri}
    label = {"label": match.label} if match.label else {}
    metadata = {"metadata": _short(match.metadata)} if match.metadata else {}
    return {"id": match.id, "score": round(match.score, 4), **label, **metadata, **uri}


def _job(job: Job) -> dict[str, Any]:
    fields = {
        name: value for name, value in job.model_dump().items() if value not in (None, "", {})
    }
    moments = {name: _moment(fields[name]) for name in MOMENTS & fields.keys()}
    rate = {"rate": round(job.rate, 1)} if job.rate else {}
    return {**fields, **moments, **rate}


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _short(value: Any) -> Any:
    """Metadata with long texts and lists cut."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}…"
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value[:MAX_TEXT]]
    return value


def _json(value: Any) -> TextContent:
    return _text(json.dumps(value, ensure_ascii=False))


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)
