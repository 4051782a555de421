"""Routes about the duplicates of a collection: look for them, list them, say what is none."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.collections.generations import jobs_of
from clipfleet.api.collections.images import key_of
from clipfleet.api.dependencies import CollectionDep, GatewayDep
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.service import accepted, job_room, new_job_id
from clipfleet.common.collection import Collection
from clipfleet.common.duplicates import (
    PART_GROUPS,
    Group,
    Member,
    Summary,
    keep_apart,
    numbered,
    read_apart,
    read_groups,
    read_summary,
    replaced,
)
from clipfleet.common.errors import Conflict, InvalidRequest, NotFound
from clipfleet.common.http.duplicates import (
    MAX_GROUPS,
    MAX_MEMBERS,
    DuplicateGroup,
    DuplicateOut,
    DuplicatesIn,
    DuplicatesOut,
    NotDuplicates,
    NotDuplicatesIn,
    Tier,
)
from clipfleet.common.http.schemas import JobOut
from clipfleet.common.identity import BYTES_DIGITS, namespace_problem
from clipfleet.common.ledger import FINAL, NewJob
from clipfleet.common.ledger.stored_images import VERSION, stored_images
from clipfleet.common.settings import CARRIED_MODEL
from clipfleet.common.store import Fingerprint, Record

router = APIRouter(
    prefix="/v1/collections/{name}/duplicates",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

THRESHOLDS = {CARRIED_MODEL: 0.94}  # by model, as measured by benchmarks/duplicates.py
THRESHOLD = 0.95  # of other models
LOOKED_UP = 1_000  # images in one request to the store
MAX_LOOKED_UP = 20_000  # images in one answer; a page ends earlier
MAX_ENDED = 1_000  # runs that ended without a result, one after the other
TIERS: tuple[Tier, ...] = ("exact", "near")


@router.post(
    "",
    status_code=202,
    summary="Look for duplicates",
    responses={409: CONFLICT},
)
@needs("write")
async def find_duplicates(
    collection: CollectionDep,
    gateway: GatewayDep,
    response: Response,
    body: DuplicatesIn | None = None,
) -> JobOut:
    """Start a job that compares all images of the collection, without reading any file.

    One such job runs at a time: an equal request meanwhile returns the running job, and another one
    is answered with 409.
    """
    wanted = body or DuplicatesIn()
    if wanted.namespace is not None and (problem := namespace_problem(wanted.namespace)):
        raise InvalidRequest(problem)
    new = _new_job(wanted, collection)
    summary = await gateway.call(read_summary, gateway.blobs, collection)
    last = summary.job if summary else ""
    for _ in range(MAX_ENDED):  # the key admits one new job after the last one that has ended
        key = f"{collection.generation}:duplicates:{last}"
        job = await gateway.call(gateway.ledger.create, new, key, job_room(gateway))
        if job.id == new.id or job.state not in FINAL:
            break
        last = job.id
    if job.id != new.id and _asked(job.new) != _asked(new):
        raise Conflict(
            "another search for duplicates is running in this collection; wait for it or cancel it",
            job=job.id,
        )
    return accepted(job, job.new if job.id != new.id else new, response)


def _new_job(wanted: DuplicatesIn, collection: Collection) -> NewJob:
    threshold = wanted.threshold or THRESHOLDS.get(collection.model, THRESHOLD)
    parameters = {"threshold": threshold, "keep": wanted.keep, "made_at": time.time()}
    return NewJob(
        v=VERSION,
        id=new_job_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=wanted.namespace or "",
        source=stored_images("duplicates", parameters, namespace=wanted.namespace),
        on_existing="skip",
    )


def _asked(new: NewJob) -> dict[str, object]:
    """What a request asks for."""
    source = new.source
    asked = {name: of for name, of in source["parameters"].items() if name != "made_at"}
    return {**asked, "namespace": source["namespace"]}


@router.get("", summary="List duplicates", responses={409: CONFLICT})
@needs("read")
async def list_duplicates(
    collection: CollectionDep,
    gateway: GatewayDep,
    tier: Annotated[
        Tier | None, Query(description="Only groups of this tier; absent: exact, then near.")
    ] = None,
    cursor: Annotated[
        str,
        Query(
            pattern="^([0-9a-f]{1,64}:(exact|near):[0-9]{1,9})?$",
            description="The value of `next` of the previous page; empty for the first page.",
        ),
    ] = "",
    limit: Annotated[
        int, Query(ge=1, le=MAX_GROUPS, description="Maximum number of groups to return.")
    ] = 20,
    group: Annotated[
        str,
        Query(
            pattern="^([0-9a-f]{1,64}:(exact|near):[0-9]{1,9})?$",
            description="Id of a group: return this one alone.",
        ),
    ] = "",
    members: Annotated[
        int, Query(ge=1, le=MAX_MEMBERS, description="Maximum number of images of a group.")
    ] = 20,
    skip: Annotated[
        int, Query(ge=0, le=10_000_000, description="With `group`: images to leave out before.")
    ] = 0,
) -> DuplicatesOut:
    """Return the groups of the last run, page by page, and the job that runs now.

    Images that were deleted or changed since are left out, and so are groups that say nothing more.
    The largest groups come first. An image may be in one exact and in one near group.
    """
    running = [job.id for job in await jobs_of(collection, gateway) if _is_search(job.new)]
    summary = await gateway.call(read_summary, gateway.blobs, collection)
    out = DuplicatesOut(
        job=running[0] if running else None,
        made_at=None, threshold=None, keep=None, namespace=None, images=0, exact=0, near=0,
        groups=[], next=None,
    )  # fmt: skip
    if summary is None:
        if cursor or group:
            raise replaced()
        return out
    reading = _Reading(collection, gateway, summary, members)
    if group:
        one_group = await reading.one(_Place.of(group, summary), skip)
        groups, following = [one_group] if one_group else [], None
        if not groups:
            raise NotFound("this group has no duplicates any more")
    else:
        tiers = (tier,) if tier else TIERS
        start = _Place.of(cursor, summary) if cursor else _Place(tiers[0], 0)
        groups, following = await reading.page(start, tiers, limit)
    known = summary.model_dump(exclude={"v", "job"})
    return out.model_copy(
        update={
            **known,
            "groups": groups,
            "next": following.text(summary) if following else None,
        }
    )


def _is_search(new: NewJob) -> bool:
    return new.source.get("task") == "duplicates"


@router.post("/dismiss", summary="Say that images are no duplicates")
@needs("write")
async def dismiss_duplicates(
    body: NotDuplicatesIn, collection: CollectionDep, gateway: GatewayDep
) -> NotDuplicates:
    """Remember that images are no duplicates of each other, until the collection is deleted.

    No later answer and no later run has two of them in one group. The images need not exist.
    """
    keys = {key_of(body.namespace, image_id) for image_id in body.ids}
    if len(keys) < 2:
        raise InvalidRequest("ids names one image only; name two or more")
    await gateway.call(keep_apart, gateway.blobs, collection, keys)
    return NotDuplicates(images=len(keys))


@dataclass(frozen=True)
class _Place:
    """A group by its tier and number."""

    tier: Tier
    number: int

    @classmethod
    def of(cls, text: str, summary: Summary) -> "_Place":
        """Raises ResultReplaced for a place in the result of another run."""
        job, tier, number = text.split(":")
        if job != summary.job:
            raise replaced()
        return cls("exact" if tier == "exact" else "near", int(number))

    def text(self, summary: Summary) -> str:
        return f"{summary.job}:{self.tier}:{self.number}"


class _Reading:
    """Reads groups of a result for one request.

    Args:
        members: the number of images of a group at most.
    """

    def __init__(
        self, collection: Collection, gateway: Gateway, summary: Summary, members: int
    ) -> None:
        self._collection, self._gateway = collection, gateway
        self._summary, self._members = summary, members
        self._apart: Mapping[str, Sequence[int]] | None = None

    async def one(self, place: _Place, skip: int) -> DuplicateGroup | None:
        """One group, without its first images; None when it is none any more."""
        if place.number >= self._summary.count(place.tier):
            return None
        stored = await self._part(place.tier, place.number // PART_GROUPS)
        group = stored[place.number % PART_GROUPS]
        known = await self._fingerprints([member.pk for member in group.members])
        return await self._shown(place, group, known, skip)

    async def page(
        self, start: _Place, tiers: Sequence[Tier], limit: int
    ) -> tuple[list[DuplicateGroup], _Place | None]:
        """The next groups, and the place of the one after them; None at the end."""
        groups: list[DuplicateGroup] = []
        looked_up, place = 0, start
        for tier in tiers[tiers.index(start.tier) if start.tier in tiers else 0 :]:
            if place.tier != tier:
                place = _Place(tier, 0)
            while place.number < self._summary.count(tier):
                if len(groups) >= limit or looked_up >= MAX_LOOKED_UP:
                    return groups, place
                first = place.number % PART_GROUPS
                stored = await self._part(tier, place.number // PART_GROUPS)
                some = stored[first : first + limit - len(groups)]
                some = some[: max(1, _fitting(some, MAX_LOOKED_UP - looked_up))]
                keys = [member.pk for group in some for member in group.members]
                looked_up += len(keys)
                known = await self._fingerprints(keys)
                for group in some:
                    if shown := await self._shown(place, group, known):
                        groups.append(shown)
                    place = _Place(tier, place.number + 1)
        return groups, None

    async def _part(self, tier: Tier, number: int) -> tuple[Group, ...]:
        gateway, collection = self._gateway, self._collection
        return await gateway.call(
            read_groups, gateway.blobs, collection, self._summary, tier, number
        )

    async def _fingerprints(self, keys: Sequence[str]) -> dict[str, Fingerprint]:
        known: dict[str, Fingerprint] = {}
        for start in range(0, len(keys), LOOKED_UP):
            part = keys[start : start + LOOKED_UP]
            store = self._gateway.store
            known |= await self._gateway.call(store.fingerprints, self._collection, part)
        return known

    async def _shown(
        self, place: _Place, group: Group, known: Mapping[str, Fingerprint], skip: int = 0
    ) -> DuplicateGroup | None:
        """A group without the images that are gone; None when it is none any more."""
        members = [member for member in group.members if _is_same(member, known.get(member.pk))]
        members = self._together(members, await self._kept_apart())
        likes = {member.like for member in members}
        if len(members) < 2 or members[0].like or (place.tier == "near" and len(likes) < 2):
            return None
        some = members[skip : skip + self._members]
        records = await self._gateway.call(
            self._gateway.store.fetch,
            self._collection,
            [members[0].pk, *(member.pk for member in some)],
            include_values=False,
        )
        return DuplicateGroup(
            id=place.text(self._summary),
            tier=place.tier,
            namespace=next((row.namespace for row in records.values()), ""),
            size=len(members),
            images=[
                _out(records[member.pk], member, members[0])
                for member in some
                if member.pk in records
            ],
        )

    async def _kept_apart(self) -> Mapping[str, Sequence[int]]:
        """The sets of images kept apart since the run; it left the earlier ones apart itself."""
        if self._apart is None:
            gateway, since = self._gateway, self._summary.made_at
            sets = await gateway.call(read_apart, gateway.blobs, self._collection, since)
            self._apart = numbered(sets)
        return self._apart

    def _together(
        self, members: Sequence[Member], apart: Mapping[str, Sequence[int]]
    ) -> list[Member]:
        """The first member and those that are not kept apart from it or from each other."""
        together: list[Member] = []
        sets: set[int] = set()
        for member in members:
            own = set(apart.get(member.pk, ()))
            if not own & sets:
                together.append(member)
                sets |= own
        return together


def _fitting(groups: Sequence[Group], room: int) -> int:
    """How many of the groups have no more than `room` members together."""
    for number, group in enumerate(groups):
        room -= len(group.members)
        if room < 0:
            return number
    return len(groups)


def _is_same(member: Member, now: Fingerprint | None) -> bool:
    """Whether an image has the bytes that it had when it was compared."""
    if now is None:
        return False
    if member.content_hash:
        return member.content_hash[:BYTES_DIGITS] == now.content_hash[:BYTES_DIGITS]
    return now.indexed_at == member.indexed_at


def _out(record: Record, member: Member, first: Member) -> DuplicateOut:
    return DuplicateOut(
        id=record.id,
        uri=record.uri,
        label=record.label or None,
        bytes=record.bytes,
        width=record.width,
        height=record.height,
        indexed_at=record.indexed_at,
        similarity=member.similarity,
        same_bytes=member.like == first.like,
        keep=member.pk == first.pk,
    )
