"""Messages as they come off the queue. Celery takes one away whatever we think of it, so one that
this worker does not understand is answered or left to the ledger, never dropped in silence."""

import threading
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from clipfleet.common.errors import Unavailable
from clipfleet.common.ledger import Ledger
from clipfleet.common.messages import Answer, BatchReply, IngestChunk, QueryBatch
from clipfleet.common.replies import Replies
from clipfleet.common.versions import OtherVersion, read, say_once

PAUSE_S = 3.0


class Nudge(BaseModel):
    """What every version of IngestChunk says."""

    job_id: str
    no: int


class Asked(BaseModel):
    """What every version of QueryBatch says; one deadline a query."""

    batch_id: str
    reply_to: str
    deadlines: tuple[float, ...]


def chunk_in(
    raw: str, ledger: Ledger, worker: str, stopping: threading.Event
) -> IngestChunk | None:
    try:
        return read(IngestChunk, raw, "the message")
    except (OtherVersion, ValidationError) as error:
        leave(Nudge.model_validate_json(raw), error, ledger, worker, stopping)
        return None


def leave(
    what: Nudge | IngestChunk,
    why: OtherVersion | ValidationError,
    ledger: Ledger,
    worker: str,
    stopping: threading.Event,
) -> None:
    """To another worker: the planner sends it again, as if this message had been lost. The job
    says why; with other workers at it the next chunk that is done clears that. Takes a while, or
    this worker would take the whole queue from those who are busy with what they understand."""
    said = f"worker {worker} leaves its chunks alone: {_reason(why)}"
    say_once(f"job {what.job_id}: {said}")
    with suppress(Unavailable):
        ledger.note(what.job_id, said)
        ledger.sent(what.job_id, what.no)  # not at once: it may come here again
    stopping.wait(PAUSE_S)


def batch_in(raw: str, replies: Replies) -> QueryBatch | None:
    """One that is not understood is answered at once, instead of letting its callers wait."""
    try:
        return read(QueryBatch, raw, "the query")
    except (OtherVersion, ValidationError) as error:
        asked = Asked.model_validate_json(raw)
        say_once(f"queries are refused: {_reason(error)}")
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
