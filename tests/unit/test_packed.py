"""Packed replies, whose matches the gateway passes on unparsed."""

import json

import pytest

from clipfleet.common.http.schemas import MatchOut, SearchOut
from clipfleet.common.queue.messages import Answer, BatchReply
from clipfleet.common.queue.packed import PackedAnswer, pack, read_reply
from clipfleet.common.versions import OtherVersion


def match(name: str, caption: str = "é\n") -> MatchOut:
    return MatchOut(id=name, score=0.5, uri="u", label=None, metadata={"caption": caption})


REPLY = BatchReply(
    batch_id="b",
    answers=(
        Answer(matches=(match("a"), match("b"))),
        Answer(error="not-found", detail="there is none"),
        Answer(embedding=(0.5, 1.0)),
        Answer(),
    ),
)


def test_what_is_packed_is_read_as_it_was() -> None:
    for raw in (pack(REPLY, [1_000] * 4), REPLY.model_dump_json().encode()):
        reply = read_reply(raw)
        assert reply.batch_id == "b"
        for read, written in zip(reply.answers, REPLY.answers, strict=True):
            assert read.matches == written.matches
            assert read.embedding == written.embedding
            assert (read.error, read.detail) == (written.error, written.detail)


def test_matches_travel_as_a_client_gets_them() -> None:
    first = read_reply(pack(REPLY, [1_000] * 4)).answers[0]
    shown = SearchOut(matches=[match("a"), match("b")], took_ms=1).model_dump_json()
    assert json.loads(shown)["matches"] == json.loads(first.json)
    assert first.json.decode() in shown


def test_an_answer_with_too_many_bytes_says_what_to_lower() -> None:
    large = Answer(matches=(match("large", "x" * 2_000),))
    small = Answer(matches=(match("small"),))
    answers = read_reply(
        pack(BatchReply(batch_id="b", answers=(large, small)), [1_000] * 2)
    ).answers
    assert answers[0].error == "too-large"
    for word in ("top_k", "include_metadata", "CLIPFLEET_LIMITS__ANSWER_BYTES"):
        assert word in answers[0].detail
    assert answers[0].json == b"[]"
    assert answers[1].matches == small.matches


def test_a_reply_is_bounded_and_small_answers_have_room_first() -> None:
    large, small = Answer(matches=(match("a", "x" * 600),)), Answer(matches=(match("small"),))
    answers = (large,) * 50 + (small,)
    raw = pack(BatchReply(batch_id="b", answers=answers), [1_000] * 51)
    received = read_reply(raw).answers
    assert [answer.error for answer in received] == ["", *["too-large"] * 49, ""]
    assert "fewer queries" in received[1].detail
    assert sum(len(answer.json) for answer in received if answer.matches) <= 1_000


def test_another_version_is_refused_and_what_is_new_in_this_one_is_not() -> None:
    head, _, rest = pack(REPLY, [1_000] * 4).partition(b"\n")
    fields = json.loads(head)
    newer = json.dumps({**fields, "colour": "blue"}).encode() + b"\n" + rest
    assert read_reply(newer).answers == read_reply(pack(REPLY, [1_000] * 4)).answers
    with pytest.raises(OtherVersion, match="version 3"):
        read_reply(json.dumps({**fields, "v": 3}).encode() + b"\n" + rest)


def test_nothing_found_is_an_empty_list() -> None:
    assert PackedAnswer().matches == ()
