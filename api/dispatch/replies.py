"""Hands the workers' replies to the queries that wait for them."""

import logging
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from clipfleet.api.dispatch.coalescer import Coalescer
from clipfleet.common.errors import (
    ClipfleetError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unavailable,
)
from clipfleet.common.queue.packed import PackedAnswer, read_reply
from clipfleet.common.versions import OtherVersion

log = logging.getLogger(__name__)


class ReplyHeader(BaseModel):
    """The fields that every version of a reply has.

    Attributes:
        batch_id: the batch that the reply answers.
    """

    batch_id: str


def dispatch_reply(raw: bytes, coalescers: Sequence[Coalescer]) -> None:
    """Give a reply to the coalescer that has sent its batch.

    A reply that cannot be parsed fails its batch at once. Otherwise its queries would wait until
    they time out.

    Args:
        raw: the reply as a worker has sent it.
        coalescers: all coalescers of the gateway; those without the batch ignore the reply.
    """
    try:
        reply = read_reply(raw)
    except (OtherVersion, ValidationError) as error:
        batch_id = ReplyHeader.model_validate_json(raw.partition(b"\n")[0]).batch_id
        log.error("a reply could not be parsed: %s", error)
        for coalescer in coalescers:
            coalescer.fail(batch_id, _parse_error(error))
        return
    for coalescer in coalescers:
        coalescer.receive(reply)


def _parse_error(error: OtherVersion | ValidationError) -> ClipfleetError:
    if isinstance(error, OtherVersion):
        return error
    return ClipfleetError("a worker's answer could not be parsed")


def error_of(answer: PackedAnswer) -> ClipfleetError:
    """Return the error that a worker answered with."""
    kinds: dict[str, type[ClipfleetError]] = {
        "not-found": NotFound,
        "invalid-request": InvalidRequest,
        "too-large": TooLarge,
        "unavailable": Unavailable,
    }
    return kinds.get(answer.error, ClipfleetError)(answer.detail)
