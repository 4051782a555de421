"""Routes of maps: where the images of a collection are in two dimensions."""

import math
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.generations import jobs_of
from clipfleet.api.dependencies import CollectionDep, GatewayDep, IdempotencyKey
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.service import new_job_id, start
from clipfleet.common.blobs import BlobGone
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, InvalidRequest, NotFound
from clipfleet.common.http.maps import MapColours, MapIn, MapOut, MapPoints
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.identity import DEFAULT_NAMESPACE, namespace_problem
from clipfleet.common.ledger import Job, NewJob
from clipfleet.common.ledger.shown import job_out
from clipfleet.common.ledger.stored_images import VERSION, results_of, stored_images
from clipfleet.common.maps import PAGE_POINTS, MapHead, Maps, Page
from clipfleet.common.store.filters import parse_filter

router = APIRouter(
    prefix="/v1/collections/{name}/map",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

MAX_PAGE = 1_000_000
NamespaceOf = Annotated[str, Query(max_length=256, description="Namespace of the images.")]


@router.post(
    "",
    status_code=202,
    summary="Make a map",
    responses={202: {"description": "The job."}, 409: CONFLICT},
)
@needs("write")
async def make_map(
    body: MapIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    response: Response,
    idempotency_key: IdempotencyKey = "",
) -> JobOut:
    """Start a job that gives each image of a namespace a place in two dimensions.

    The map replaces the one before when it is finished. The response is 409 while another job
    makes a map of the namespace.
    """
    _require_namespace(body.namespace)
    running = await _running(collection, body.namespace, gateway)
    if running is not None and not idempotency_key:
        raise Conflict(
            f"job {running.id} makes the map of the namespace {body.namespace!r}; wait for its "
            f"end, or cancel it (POST /v1/jobs/{running.id}/cancel)",
            job=running.id,
        )
    parameters = body.model_dump(exclude_none=True)
    new = NewJob(
        v=VERSION,
        id=new_job_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=body.namespace,
        source=stored_images("map", parameters, namespace=body.namespace),
    )
    return await start(new, idempotency_key, gateway, response)


@router.get("", summary="Get the map")
@needs("read")
async def get_map(
    collection: CollectionDep, gateway: GatewayDep, namespace: NamespaceOf = DEFAULT_NAMESPACE
) -> MapOut:
    """Return what is known of the map of a namespace. Its points have a route of their own."""
    _require_namespace(namespace)
    running = await _running(collection, namespace, gateway)
    job = None if running is None else job_out(running)
    head = await _head(collection, namespace, gateway)
    if head is None:
        return MapOut(state="making" if job else "none", namespace=namespace, job=job)
    where = parse_filter({"indexed_at": {"$gt": int(head.began_at * 1000)}}, collection.fields)
    new = await gateway.call(gateway.store.count, collection, namespace, where)
    return MapOut(
        state="made",
        job=job,
        map_id=head.job_id,
        not_on_map=new,
        pages=math.ceil(head.points / PAGE_POINTS),
        fields={name: MapColours(**colours.model_dump()) for name, colours in head.fields.items()},
        **head.model_dump(exclude={"v", "job_id", "fields"}),
    )


@router.get(
    "/points",
    summary="Read the points of the map",
    responses={
        200: {"model": MapPoints},
        304: {"description": "The points are those of the ETag."},
    },
)
@needs("read")
async def read_points(
    collection: CollectionDep,
    gateway: GatewayDep,
    namespace: NamespaceOf = DEFAULT_NAMESPACE,
    page: Annotated[int, Query(ge=0, le=MAX_PAGE, description="The page, from 0.")] = 0,
    field: Annotated[
        str, Query(max_length=256, description="The field whose values colour the points.")
    ] = "",
    if_none_match: Annotated[str, Header(max_length=4096)] = "",
) -> Response:
    """Return a page of points as columns, and an ETag.

    An image that was deleted since the map was made still has its point. All pages of one map have
    its `map_id`; when it changes in between, begin again.
    """
    _require_namespace(namespace)
    head = await _head(collection, namespace, gateway)
    if head is None:
        raise NotFound(
            f"there is no map of the namespace {namespace!r} yet; make one with POST "
            f"/v1/collections/{collection.name}/map"
        )
    if field and field not in head.fields:
        known = ", ".join(map(repr, head.fields))
        raise InvalidRequest(
            f"the map has no colours for the field {field!r}, only for {known}; make it again with "
            "this field"
        )
    if page and page * PAGE_POINTS >= head.points:
        raise NotFound(f"the map has {math.ceil(head.points / PAGE_POINTS)} pages")
    place = list(head.fields).index(field) if field else "none"
    tag = f'"{head.job_id}-{page}-{place}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if tag in if_none_match:
        return Response(status_code=304, headers=headers)
    content = await gateway.export(
        _points, _maps(collection, namespace, gateway), head, page, field
    )
    return Response(content, media_type="application/json", headers=headers)


def _points(maps: Maps, head: MapHead, number: int, field: str) -> bytes:
    try:
        page = maps.page(head, number)
    except BlobGone as error:
        raise Conflict("the map was replaced meanwhile; ask again") from error
    return _shown(page, head, number, field).model_dump_json().encode()


def _shown(page: Page, head: MapHead, number: int, field: str) -> MapPoints:
    is_last = (number + 1) * PAGE_POINTS >= head.points
    return MapPoints(
        map_id=head.job_id,
        ids=page.ids,
        x=page.x,
        y=page.y,
        codes=page.codes[field] if field else [],
        next=None if is_last else number + 1,
    )


def _require_namespace(namespace: str) -> None:
    if problem := namespace_problem(namespace):
        raise InvalidRequest(problem)


def _maps(collection: Collection, namespace: str, gateway: Gateway) -> Maps:
    return Maps(gateway.blobs, results_of(collection), namespace)


async def _head(collection: Collection, namespace: str, gateway: Gateway) -> MapHead | None:
    return await gateway.call(_maps(collection, namespace, gateway).head)


async def _running(collection: Collection, namespace: str, gateway: Gateway) -> Job | None:
    """The job that makes the map of a namespace, if there is one."""
    for job in await jobs_of(collection, gateway):
        if job.new.source.get("task") == "map" and job.new.namespace == namespace:
            return job
    return None
