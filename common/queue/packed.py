"""A worker's reply whose matches the gateway passes on as they are.

The first line is JSON and says what follows: the matches of each query, as the JSON that a client
gets. Read with `read_reply`, which understands a plain `BatchReply`, too: workers of an earlier
release send those, and gateways of an earlier release get them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from clipfleet.common.http.schemas import MatchOut
from clipfleet.common.queue.messages import Answer, BatchReply, ErrorKind
from clipfleet.common.versions import read

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


@dataclass(frozen=True)
class PackedAnswer:
    """What a gateway gets for one query. `json`: the matches, a list."""

    json: bytes = _EMPTY
    embedding: tuple[float, ...] = ()
    error: ErrorKind = ""
    detail: str = ""

    @property
    def matches(self) -> tuple[MatchOut, ...]:
        return _MATCHES.validate_json(self.json)


@dataclass(frozen=True)
class Reply:
    """The answers of a batch, in the order of its queries."""

    batch_id: str
    answers: Sequence[PackedAnswer]


def pack(reply: BatchReply, most: Sequence[int]) -> bytes:
    """The bytes of a reply.

    Args:
        most: bytes of each answer. The largest of these bounds all answers together, which may be
            those of several callers: the small ones have room first. An answer for which there is
            none becomes an error that says what to ask for instead.
    """
    answers = list(reply.answers)
    parts = [_MATCHES.dump_json(one.matches) if one.matches else _EMPTY for one in answers]
    room = max(most, default=0)
    for n in sorted(range(len(parts)), key=lambda n: len(parts[n])):
        if not answers[n].matches:
            continue
        if len(parts[n]) <= min(most[n], room):
            room -= len(parts[n])
        else:
            answers[n], parts[n] = _too_large(len(parts[n]), most[n]), _EMPTY
    heads = tuple(
        _Head(size=len(part), **answer.model_dump(exclude={"matches"}))
        for answer, part in zip(answers, parts, strict=True)
    )
    head = _PackedReply(batch_id=reply.batch_id, answers=heads)
    return b"\n".join([head.model_dump_json().encode(), b"".join(parts)])


def _too_large(size: int, limit: int) -> Answer:
    what = f"the matches have {size} bytes" if size > limit else "the matches of queries at once"
    said = (
        f"{what}: {limit} at most (CLIPFLEET_LIMITS__ANSWER_BYTES); lower top_k, ask fewer queries "
        "at once, or leave out include_metadata or include_values"
    )
    return Answer(error="too-large", detail=said)


def read_reply(raw: bytes) -> Reply:
    """A reply, packed or not. OtherVersion, or ValidationError."""
    end = raw.find(b"\n")
    if end < 0:
        plain = read(BatchReply, raw, "a worker's answer")
        return Reply(plain.batch_id, [_of(answer) for answer in plain.answers])
    head = read(_PackedReply, raw[:end], "a worker's answer")
    answers, start = [], end + 1
    for one in head.answers:
        part = raw[start : start + one.size]
        answers.append(PackedAnswer(part, one.embedding, one.error, one.detail))
        start += one.size
    return Reply(head.batch_id, answers)


def _of(answer: Answer) -> PackedAnswer:
    json = _MATCHES.dump_json(answer.matches)
    return PackedAnswer(json, answer.embedding, answer.error, answer.detail)
