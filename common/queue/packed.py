"""Packed replies of workers: the gateway passes their matches on without parsing them.

The first line is JSON with the size of each answer. After it follow the matches of each query, as
the JSON that a client gets. `read_reply` also reads a plain `BatchReply`: workers of an earlier
release send those, and gateways of an earlier release get them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from clipfleet.common.http.schemas import MatchOut
from clipfleet.common.queue.messages import Answer, BatchReply, ErrorKind
from clipfleet.common.versions import parse_versioned

_MATCHES = TypeAdapter(tuple[MatchOut, ...])
_EMPTY = b"[]"


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True)

    size: int
    embedding: tuple[float, ...] = ()
    error: ErrorKind = ""
    detail: str = ""


class _PackedReply(BaseModel):
    model_config = ConfigDict(frozen=True)

    v: Literal[2] = 2
    batch_id: str
    answers: tuple[_Head, ...]
    times: tuple[int, ...] = ()


@dataclass(frozen=True)
class PackedAnswer:
    """The answer to one query, as a gateway reads it.

    Attributes:
        json: the matches, a JSON list.
        embedding: the embedding of a query without a search.
        error: the kind of error; "": none.
        detail: the text of the error.
        times: the times of its batch, see `BatchReply.times`.
    """

    json: bytes = _EMPTY
    embedding: tuple[float, ...] = ()
    error: ErrorKind = ""
    detail: str = ""
    times: tuple[int, ...] = ()

    @property
    def matches(self) -> tuple[MatchOut, ...]:
        """The matches, parsed."""
        return _MATCHES.validate_json(self.json)


@dataclass(frozen=True)
class Reply:
    """The reply to a batch, as a gateway reads it.

    Attributes:
        batch_id: the id of the batch.
        answers: the answers, in the order of the queries.
    """

    batch_id: str
    answers: Sequence[PackedAnswer]


def pack(reply: BatchReply, limits: Sequence[int]) -> bytes:
    """Pack a reply.

    Args:
        limits: for each answer, the size of its matches at most, bytes. The largest of the limits
            is also the limit of all answers together. When they do not fit, the small ones have
            precedence, and an answer that does not fit becomes an error that says what to change.
    """
    began = time.perf_counter()
    answers = list(reply.answers)
    parts = [_MATCHES.dump_json(answer.matches) if answer.matches else _EMPTY for answer in answers]
    remaining = max(limits, default=0)
    for i in sorted(range(len(parts)), key=lambda i: len(parts[i])):
        if not answers[i].matches:
            continue
        if len(parts[i]) <= min(limits[i], remaining):
            remaining -= len(parts[i])
        else:
            answers[i], parts[i] = _too_large(len(parts[i]), limits[i]), _EMPTY
    heads = tuple(
        _Head(size=len(part), **answer.model_dump(exclude={"matches"}))
        for answer, part in zip(answers, parts, strict=True)
    )
    times = list(reply.times)
    if times:
        times[2] += int(1e6 * (time.perf_counter() - began))
    head = _PackedReply(batch_id=reply.batch_id, answers=heads, times=tuple(times))
    return b"\n".join([head.model_dump_json().encode(), b"".join(parts)])


def _too_large(size: int, limit: int) -> Answer:
    problem = f"the matches have {size} bytes" if size > limit else "the matches of queries at once"
    detail = (
        f"{problem}: {limit} at most (CLIPFLEET_LIMITS__ANSWER_BYTES); lower top_k, ask fewer "
        "queries at once, or leave out include_metadata or include_values"
    )
    return Answer(error="too-large", detail=detail)


def read_reply(raw: bytes) -> Reply:
    """Read a reply, packed or plain.

    Raises:
        OtherVersion: a worker of another version sent it.
        ValidationError: it is no reply.
    """
    end = raw.find(b"\n")
    if end < 0:
        plain = parse_versioned(BatchReply, raw, "a worker's answer")
        return Reply(plain.batch_id, [_of(answer, plain.times) for answer in plain.answers])
    head = parse_versioned(_PackedReply, raw[:end], "a worker's answer")
    answers, start = [], end + 1
    for header in head.answers:
        part = raw[start : start + header.size]
        answers.append(
            PackedAnswer(part, header.embedding, header.error, header.detail, head.times)
        )
        start += header.size
    return Reply(head.batch_id, answers)


def _of(answer: Answer, times: tuple[int, ...]) -> PackedAnswer:
    json = _MATCHES.dump_json(answer.matches)
    return PackedAnswer(json, answer.embedding, answer.error, answer.detail, times)
