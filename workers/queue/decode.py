"""Decoding of messages, including messages and jobs of another release.

Celery removes a message from the queue even if the worker cannot read it. So a batch of queries
that this worker cannot read is answered with an error, and a job that it cannot read is left to
other workers, with the reason shown as the job's `waiting`.
"""

import threading
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Ledger
from clipfleet.common.queue.messages import Answer, BatchReply, QueryBatch
from clipfleet.common.queue.replies import Replies
from clipfleet.common.versions import OtherVersion, parse_versioned, warn_once

PAUSE_S = 3.0


class BatchHeader(BaseModel):
    """The fields that every version of QueryBatch has, with one deadline for each query."""

    batch_id: str
    reply_to: str
    deadlines: tuple[float, ...]


def skip_job(
    job_id: str, reason: str, ledger: Ledger, worker: str, stopping: threading.Event
) -> None:
    """Leave a job to workers that can read it, and set the reason as the job's `waiting`.

    Sleeps for PAUSE_S, or until `stopping` is set, so that an outdated worker does not take every
    nudge.
    """
    detail = f"worker {worker} skips its chunks: {reason}"
    warn_once(f"job {job_id}: {detail}")
    with suppress(Unavailable):
        ledger.set_waiting_reason(job_id, detail)
    stopping.wait(PAUSE_S)


def decode_query_batch(raw: str, replies: Replies) -> QueryBatch | None:
    """Decode a batch of queries.

    A batch that this worker cannot read is answered at once, so that its callers do not wait.

    Args:
        raw: the JSON of a QueryBatch.
        replies: where the error is sent.

    Returns:
        The batch, or None if it was answered with an error.
    """
    try:
        return parse_versioned(QueryBatch, raw, "the query")
    except (OtherVersion, ValidationError) as error:
        header = BatchHeader.model_validate_json(raw)
        warn_once(f"the worker refuses queries that it cannot read: {_reason(error)}")
        detail = f"a worker cannot read the query: {_reason(error)}"
        answers = (Answer(error="unavailable", detail=detail),) * len(header.deadlines)
        replies.push(header.reply_to, BatchReply(batch_id=header.batch_id, answers=answers))
        return None


def _reason(error: OtherVersion | ValidationError) -> str:
    if isinstance(error, OtherVersion):
        return error.detail
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}; are all parts of one release?"
