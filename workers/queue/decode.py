"""What this worker does not understand: messages and jobs of another release.

Celery takes a message off the queue whatever the worker thinks of it. So a query that is not
understood is answered, and a job that is not understood is left to other workers and says so.
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


class Asked(BaseModel):
    """What every version of QueryBatch says; one deadline a query."""

    batch_id: str
    reply_to: str
    deadlines: tuple[float, ...]


def pass_over(
    job_id: str, reason: str, ledger: Ledger, worker: str, stopping: threading.Event
) -> None:
    """Leave a job to workers that understand it, and note the reason as the job's `waiting`.

    Sleeps for PAUSE_S: an outdated worker must not take every nudge.
    """
    detail = f"worker {worker} leaves its chunks alone: {reason}"
    warn_once(f"job {job_id}: {detail}")
    with suppress(Unavailable):
        ledger.set_waiting_reason(job_id, detail)
    stopping.wait(PAUSE_S)


def batch_in(raw: str, replies: Replies) -> QueryBatch | None:
    """One that is not understood is answered at once, instead of letting its callers wait."""
    try:
        return parse_versioned(QueryBatch, raw, "the query")
    except (OtherVersion, ValidationError) as error:
        asked = Asked.model_validate_json(raw)
        warn_once(f"queries are refused: {_reason(error)}")
        detail = f"a worker does not understand the query: {_reason(error)}"
        answers = (Answer(error="unavailable", detail=detail),) * len(asked.deadlines)
        replies.push(asked.reply_to, BatchReply(batch_id=asked.batch_id, answers=answers))
        return None


def _reason(error: OtherVersion | ValidationError) -> str:
    if isinstance(error, OtherVersion):
        return error.detail
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}; are all parts of one release?"
