"""What routes do to the generations of a collection: delete images, and end a generation."""

import logging
from collections.abc import Sequence
from contextlib import suppress

from clipfleet.api.collections.turns import write_in_turn
from clipfleet.api.dispatch.gateway import Gateway
from clipfleet.common.collection import Collection
from clipfleet.common.errors import NotFound
from clipfleet.common.imaging.thumbnails import thumbnail_keys
from clipfleet.common.ledger import Job
from clipfleet.common.versions import OtherVersion

log = logging.getLogger(__name__)

STORE_TIMEOUT_S = 60.0


async def jobs_of(collection: Collection, gateway: Gateway) -> list[Job]:
    """Return the jobs that write to a generation and have not ended."""
    jobs = []
    for job_id in await gateway.call(gateway.ledger.active):
        with suppress(NotFound, OtherVersion):  # removed meanwhile, or left to newer workers
            job = await gateway.call(gateway.ledger.job, job_id)
            if job.new.generation == collection.generation:
                jobs.append(job)
    return jobs


async def cancel_jobs_of(collection: Collection, reason: str, gateway: Gateway) -> None:
    """Cancel the jobs that write to a generation."""
    for job in await jobs_of(collection, gateway):
        with suppress(NotFound):
            await gateway.call(gateway.ledger.cancel, job.id, reason)


async def drop_later(collection: Collection, gateway: Gateway) -> None:
    """Delete the data of a generation that the catalogue has among those to drop."""
    try:
        await gateway.call(gateway.reconciler.drop, collection, timeout_s=STORE_TIMEOUT_S)
    except Exception as error:  # the next round of the reconciler goes on
        log.warning("the data of %s is deleted later: %s", collection.generation, error)


async def delete_rows(pks: Sequence[str], collection: Collection, gateway: Gateway) -> None:
    """Delete images of one generation with their thumbnails.

    Thumbnails are deleted first: an image whose deletion fails can be deleted again.
    """
    thumbnails = thumbnail_keys(collection, pks)
    await gateway.call(gateway.blobs.delete_all, thumbnails, timeout_s=STORE_TIMEOUT_S)

    async def delete(keys: list[str]) -> None:
        await gateway.call(gateway.store.delete, collection, keys, timeout_s=STORE_TIMEOUT_S)

    await write_in_turn(pks, collection, gateway, delete)
    await gateway.call(gateway.catalogue.record_write, collection)
