"""Packed replies of workers: the gateway passes their matches on without parsing them.

The first line is JSON with the size of each answer. After it follow the matches of each query, as
the JSON that a client gets. `read_reply` also reads a plain `BatchReply`: workers of an earlier
release send those, and gateways of an earlier release get them.
"""

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
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
    truncated: str = ""
    truncated_texts: tuple[int, ...] = ()
    no_match: bool | None = None
    no_confidence: str = ""


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
        truncated: the limit that cut the page of matches short; "": none.
        truncated_texts: the indices of the terms whose texts the model did not read to the end.
        no_match: whether nothing is like the query; None: not known.
        no_confidence: why there is no confidence; "": there is.
    """

    json: bytes = _EMPTY
    embedding: tuple[float, ...] = ()
    error: ErrorKind = ""
    detail: str = ""
    times: tuple[int, ...] = ()
    truncated: str = ""
    truncated_texts: tuple[int, ...] = ()
    no_match: bool | None = None
    no_confidence: str = ""

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


def pack(reply: BatchReply, limits: Sequence[int], reply_bytes: int = 0) -> bytes:
    """Pack a reply.

    Args:
        reply: the reply.
        limits: for each answer, the size of its matches at most, bytes.
        reply_bytes: the size of all matches together at most, bytes. Small pages stay whole and
            large ones share the rest. A page ends before its first match without room; a page
            of which no match has room becomes an error that says what to change. 0: every page
            without room becomes an error, and the largest of the limits is that of all together.
    """
    began = time.perf_counter()
    answers = list(reply.answers)
    parts = [_MATCHES.dump_json(answer.matches) if answer.matches else _EMPTY for answer in answers]
    remaining = reply_bytes or max(limits, default=0)
    pages = [i for i, answer in enumerate(answers) if answer.matches]
    pages.sort(key=lambda i: min(len(parts[i]), limits[i]))
    for count, i in zip(range(len(pages), 0, -1), pages, strict=True):
        limit = min(limits[i], remaining)
        share, size = min(limit, remaining // count), len(parts[i])
        if reply_bytes and size > share:
            parts[i] = _cut(answers[i].matches, share)
            if len(parts[i]) < size:
                answers[i] = answers[i].model_copy(update={"truncated": "answer_bytes"})
        if len(parts[i]) > limit:
            answers[i], parts[i] = _too_large(size, limits[i]), _EMPTY
        else:
            remaining -= len(parts[i])
    heads = tuple(
        _Head(size=len(part), **answer.model_dump(exclude={"matches"}))
        for answer, part in zip(answers, parts, strict=True)
    )
    times = list(reply.times)
    if times:
        times[2] += int(1e6 * (time.perf_counter() - began))
    head = _PackedReply(batch_id=reply.batch_id, answers=heads, times=tuple(times))
    return b"\n".join([head.model_dump_json().encode(), b"".join(parts)])


def _cut(matches: Sequence[MatchOut], size: int) -> bytes:
    """The first matches, as many as fit into `size` bytes, but at least one."""
    parts = [_MATCHES.dump_json((match,))[1:-1] for match in matches]
    ends = list(accumulate(len(part) + 1 for part in parts))  # with a comma or bracket each
    return b"[" + b",".join(parts[: max(1, bisect_right(ends, size - 1))]) + b"]"


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
            PackedAnswer(
                part,
                header.embedding,
                header.error,
                header.detail,
                head.times,
                header.truncated,
                header.truncated_texts,
                header.no_match,
                header.no_confidence,
            )
        )
        start += header.size
    return Reply(head.batch_id, answers)


def _of(answer: Answer, times: tuple[int, ...]) -> PackedAnswer:
    json = _MATCHES.dump_json(answer.matches)
    return PackedAnswer(
        json,
        answer.embedding,
        answer.error,
        answer.detail,
        times,
        answer.truncated,
        answer.truncated_texts,
        answer.no_match,
        answer.no_confidence,
    )
