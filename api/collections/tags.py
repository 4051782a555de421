"""Routes of tags: words of a vocabulary, which images get as metadata by their embeddings."""

import random
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from clipfleet.api.auth.access import AuthorizedRoute, needs
from clipfleet.api.dependencies import CollectionDep, GatewayDep, IdempotencyKey
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.api.dispatch.replies import error_of
from clipfleet.api.http.problems import CONFLICT, RESPONSES
from clipfleet.api.jobs.service import new_job_id, start
from clipfleet.common.collection import Collection, FieldType, field_problem
from clipfleet.common.errors import InvalidRequest, NotFound, Unavailable
from clipfleet.common.http.tags import (
    MAX_PREVIEWED,
    WORD_BYTES,
    SavedTags,
    TagCount,
    TagExample,
    TagsIn,
    TagsOut,
    TagsPreview,
)
from clipfleet.common.identity import namespace_problem, text_problem
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.stored_images import VERSION, stored_images
from clipfleet.common.ledger.tags import (
    TagRules,
    forget_rules,
    keep_rules,
    save_rules,
    saved_rules,
)
from clipfleet.common.queue.messages import Labelling, Query, Term
from clipfleet.common.store import Record
from clipfleet.common.store.filters import Filter, parse_filter

router = APIRouter(
    prefix="/v1/collections/{name}/tags",
    tags=["collections"],
    responses=RESPONSES,
    route_class=AuthorizedRoute,
)

KIND: FieldType = "string[]"
SAMPLE = 500  # images of a dry run
MAX_NUMBERS = 100_000  # confidences in the answer of a worker
EXAMPLES = 5
STORE_TIMEOUT_S = 30.0


@router.post(
    "",
    status_code=202,
    summary="Tag images with a vocabulary",
    responses={200: {"description": "The result of a dry run.", "model": TagsOut}, 409: CONFLICT},
)
@needs("write", body="job")
async def tag_images(
    body: TagsIn,
    collection: CollectionDep,
    gateway: GatewayDep,
    response: Response,
    idempotency_key: IdempotencyKey = "",
) -> TagsOut:
    """Start a job that tags stored images, without reading any of them again.

    Each word is embedded as a text. An image gets all words whose confidence for it is at least
    `min_confidence`, as a list in the metadata field `field`. Elements of that list that are no
    words of the vocabulary stay. Only images whose tags change are written, so a job can be
    repeated. The response is 409 when the collection declares the field with another type.
    """
    rules = _rules(body)
    where = parse_filter(body.filter or {}, collection.fields)
    if body.namespace is not None and (problem := namespace_problem(body.namespace)):
        raise InvalidRequest(problem)
    _require_field(collection, rules.field)
    await gateway.worker("query", collection.model)  # 503 when nobody has the model
    if body.dry_run:
        response.status_code = 200
        return TagsOut(preview=await _preview(rules, where, body.namespace, collection, gateway))
    collection = await _declared(collection, rules.field, gateway)
    key = await gateway.call(keep_rules, gateway.blobs, collection, rules)
    if body.save:
        await gateway.call(save_rules, gateway.blobs, collection, rules)
    new = _new_job(body, key, collection)
    return TagsOut(job=await start(new, idempotency_key, gateway, response))


@router.get("", summary="Get the saved vocabulary")
@needs("read")
async def get_tags(collection: CollectionDep, gateway: GatewayDep) -> SavedTags:
    """Return the vocabulary by which images get tags when they are indexed."""
    rules = await gateway.call(saved_rules, gateway.blobs, collection)
    if rules is None:
        raise NotFound(
            f"no vocabulary is saved on the collection {collection.name!r}; save one with `save` "
            "of POST on this path"
        )
    return SavedTags(
        vocabulary=list(rules.vocabulary),
        field=rules.field,
        min_confidence=rules.min_confidence,
        template=rules.template,
    )


@router.delete("", status_code=204, summary="Forget the saved vocabulary")
@needs("write")
async def forget_tags(collection: CollectionDep, gateway: GatewayDep) -> None:
    """Stop to tag images when they are indexed. Tags that images have stay."""
    await gateway.call(forget_rules, gateway.blobs, collection)


def _rules(body: TagsIn) -> TagRules:
    """The rules of a request.

    Raises:
        InvalidRequest: a word, or the template, is not possible.
    """
    words = [word.strip() for word in body.vocabulary]
    for n, word in enumerate(words):
        name = f"vocabulary[{n}]"
        if problem := text_problem(name, word, WORD_BYTES) or field_problem(name, word, "string"):
            raise InvalidRequest(problem)
    if body.template.count("{}") != 1:
        raise InvalidRequest(
            "template must contain {} once, in place of which a word is put, as in 'a photo of a "
            "{}'"
        )
    if problem := text_problem("template", body.template, 4 * len(body.template)):
        raise InvalidRequest(problem)
    return TagRules(
        vocabulary=tuple(dict.fromkeys(words)),
        field=body.field,
        min_confidence=body.min_confidence,
        template=body.template,
    )


def _require_field(collection: Collection, field: str) -> None:
    """Raise when the field of the tags cannot be declared."""
    collection.declaring(field, KIND)


async def _declared(collection: Collection, field: str, gateway: Gateway) -> Collection:
    if collection.fields.get(field) == KIND:
        return collection
    declared = await gateway.call(gateway.catalogue.declare, collection, field, KIND)
    gateway.forget(collection.name)
    return declared


def _new_job(body: TagsIn, key: str, collection: Collection) -> NewJob:
    parameters = {"rules": key, "field": body.field, "min_confidence": body.min_confidence}
    return NewJob(
        v=VERSION,
        id=new_job_id(),
        collection=collection.name,
        generation=collection.generation,
        model=collection.model,
        namespace=body.namespace or "",
        source=stored_images("tags", parameters, namespace=body.namespace, where=body.filter),
    )


async def _preview(
    rules: TagRules,
    where: Filter | None,
    namespace: str | None,
    collection: Collection,
    gateway: Gateway,
) -> TagsPreview:
    """What a sample of the images would get."""
    count = len(rules.vocabulary)
    if count > MAX_PREVIEWED:
        raise InvalidRequest(
            f"a dry run takes {MAX_PREVIEWED} words, and the vocabulary has {count}; try a part of "
            "it, or start the job"
        )
    total = await gateway.call(
        gateway.store.count, collection, namespace, where, timeout_s=STORE_TIMEOUT_S
    )
    size = max(1, min(SAMPLE, MAX_NUMBERS // count))
    rows = await _sample(size, where, namespace, collection, gateway)
    sure = await _confidences(rules, rows, collection, gateway)
    counts = [_count(word, n, rows, sure, rules) for n, word in enumerate(rules.vocabulary)]
    counts.sort(key=lambda counted: -counted.count)
    untagged = sum(all(value < rules.min_confidence for value in row) for row in sure)
    return TagsPreview(sampled=len(rows), total=total, untagged=untagged, words=counts)


async def _sample(
    size: int,
    where: Filter | None,
    namespace: str | None,
    collection: Collection,
    gateway: Gateway,
) -> list[Record]:
    """Images from a place in the order of their keys, which are hashes: as good as any."""

    async def page(after: str, limit: int) -> list[Record]:
        return await gateway.call(
            gateway.store.scan, collection, namespace=namespace, where=where, after=after,
            limit=limit, timeout_s=STORE_TIMEOUT_S,
        )  # fmt: skip

    place = f"{random.Random(collection.generation).getrandbits(128):032x}"
    rows = await page(place, size)
    if len(rows) < size:
        rows += [row for row in await page("", size - len(rows)) if row.pk <= place]
    return rows


async def _confidences(
    rules: TagRules, rows: Sequence[Record], collection: Collection, gateway: Gateway
) -> list[list[float]]:
    if not rows:
        return []
    terms = tuple(Term(kind="text", value=text) for text in rules.texts())
    labelling = Labelling(collection=collection, pks=tuple(row.pk for row in rows))
    answer = await gateway.queries.ask(Query(terms=terms, labelling=labelling), collection.model)
    if answer.error:
        raise error_of(answer)
    numbers, width = answer.embedding, len(terms)
    if len(numbers) != width * len(rows):
        raise Unavailable("the worker that answered is of an earlier release; try again later")
    return [list(numbers[n * width : (n + 1) * width]) for n in range(len(rows))]


def _count(
    word: str, place: int, rows: Sequence[Record], sure: Sequence[Sequence[float]], rules: TagRules
) -> TagCount:
    having: list[Any] = [
        (row[place], record)
        for record, row in zip(rows, sure, strict=True)
        if row[place] >= rules.min_confidence
    ]
    having.sort(key=lambda pair: (-pair[0], pair[1].pk))
    examples = [
        TagExample(id=record.id, namespace=record.namespace, confidence=value)
        for value, record in having[:EXAMPLES]
    ]
    return TagCount(word=word, count=len(having), examples=examples)
