"""Workers' answers as they come in, handed to who waits for them."""

import logging
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.queue.packed import read_reply
from clipfleet.common.versions import OtherVersion

log = logging.getLogger(__name__)


class Answered(BaseModel):
    """What every version of a reply says."""

    batch_id: str


def dispatch_reply(raw: bytes, waiting: Sequence[Coalescer]) -> None:
    """An answer that is not understood fails its batch at once, instead of when time is up."""
    try:
        reply = read_reply(raw)
    except (OtherVersion, ValidationError) as error:
        batch_id = Answered.model_validate_json(raw.partition(b"\n")[0]).batch_id
        log.error("an answer could not be understood: %s", error)
        for one in waiting:
            one.fail(batch_id, _refusal(error))
        return
    for one in waiting:
        one.receive(reply)


def _refusal(error: OtherVersion | ValidationError) -> ClipfleetError:
    if isinstance(error, OtherVersion):
        return error
    return ClipfleetError("a worker's answer could not be understood")
