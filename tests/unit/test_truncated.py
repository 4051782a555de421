"""A page that a limit cuts short says which limit it was, and the next page goes on there."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from clipfleet import Client, ProblemError
from clipfleet.common.http.schemas import MatchOut
from clipfleet.common.queue.messages import LARGE_ROWS, Answer, BatchReply, QueryBatch
from clipfleet.common.queue.packed import PackedAnswer, pack, read_reply
from clipfleet.common.store import Match, Record
from clipfleet.testing import HashEmbedder, MemoryService
from clipfleet.workers.query.batch import QueryParts, answer_batch
from clipfleet.workers.query.ranking import PageSpec, Ranking
from support.in_process import run_cli
from support.query_harness import TEXT, World

DIM, ROWS = 16, 60
SEARCH = "/v1/collections/c/search"


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    limits = {"answer_bytes": 10_000, "candidates": 20, "window": 20_000}
    with MemoryService(dim=DIM, limits=limits) as running, running.client() as client:
        client.create_collection("c")
        rows = HashEmbedder(DIM).embed_texts([f"{n}" for n in range(ROWS)])
        vectors = [
            {"id": f"{n}", "values": row.tolist(), "label": "all", "metadata": {"text": "x" * 500}}
            for n, row in enumerate(rows)
        ]
        client.upsert("c", vectors)
        client.create_collection("large")
        large = {"values": [1.0] * DIM, "metadata": {"text": "x" * 12_000}}
        client.upsert("large", [{"id": f"{n}", **large} for n in range(3)])
        yield running


@pytest.fixture
def client(service: MemoryService) -> Iterator[Client]:
    with service.client() as client:
        yield client


def test_pages_cut_by_their_bytes_follow_each_other_without_a_gap(client: Client) -> None:
    bare = client.search("c", text="a", top_k=ROWS, include_metadata=False)
    assert bare.truncated is None
    ids: list[str] = []
    cut: list[str | None] = []
    while len(ids) < ROWS:
        page = client.search("c", text="a", top_k=ROWS, offset=len(ids))
        assert page.matches
        ids += [match.id for match in page.matches]
        cut.append(page.truncated)
    assert ids == [match.id for match in bare.matches]
    assert cut == ["answer_bytes"] * (len(cut) - 1) + [None]
    assert len(cut) > 2


def test_a_page_without_room_for_one_match_is_an_error(client: Client) -> None:
    with pytest.raises(ProblemError) as error:
        client.search("large", vector=[1.0] * DIM)
    assert error.value.status == 413
    for word in ("include_metadata", "CLIPFLEET_LIMITS__ANSWER_BYTES"):
        assert word in str(error.value)
    assert len(client.search("large", vector=[1.0] * DIM, include_metadata=False).matches) == 3


def test_groups_and_duplicates_that_need_more_candidates_say_so(client: Client) -> None:
    for rule in ({"group_by": "label"}, {"collapse": 0.0001}):
        page = client.search("c", text="a", top_k=5, **rule, include_metadata=False)
        assert len(page.matches) < 5
        assert page.truncated == "candidates"
    full = client.search("c", text="a", top_k=5, group_by="id", include_metadata=False)
    assert (len(full.matches), full.truncated) == (5, None)
    few = {"id": {"$in": ["1", "2", "3"]}}
    all_seen = client.search("c", text="a", top_k=5, group_by="label", filter=few)
    assert (len(all_seen.matches), all_seen.truncated) == (1, None)
    none = client.search("c", text="a", top_k=5, group_by="label", min_score=0.999)
    assert (none.matches, none.truncated) == ([], None)


def test_a_worker_that_ranks_no_further_says_so() -> None:
    """A worker ranks 10,000 matches; the gateway may be told to allow more."""
    spec = PageSpec(top_k=5, offset=8, max_window=10)
    nothing = np.empty(0, np.float32)
    records = [Record(f"{n}", f"{n}", "n", "", nothing) for n in range(20)]
    matches = [Match(record, 1 - n / 100) for n, record in enumerate(records)]

    def ranked(stored: int) -> Ranking:
        ranking = Ranking(spec, "cosine")
        for size in spec.windows():
            ranking.add(matches[:stored][:size], size)
        return ranking

    assert (len(ranked(20).page()), ranked(20).truncated) == (2, "window")
    assert (len(ranked(9).page()), ranked(9).truncated) == (1, "")


def test_one_query_of_a_batch_does_not_take_the_room_of_all_others(client: Client) -> None:
    for top_k in (ROWS, LARGE_ROWS):  # answered with the others, and alone
        queries: list[dict[str, Any]] = [{"text": "a", "top_k": top_k}]
        queries += [{"text": "b", "top_k": 2} for _ in range(4)]
        first, *others = client.search_many("c", queries)
        assert not isinstance(first, ProblemError)
        assert first.matches
        assert first.truncated == "answer_bytes"
        for other in others:
            assert not isinstance(other, ProblemError), other
            assert (len(other.matches), other.truncated) == (2, None)


def test_recall_is_not_measured_on_pages_that_were_cut(
    service: MemoryService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.recall("c", k=5, sample=5).recall == 1
    inbox = service.parts.inbox
    push = inbox.push

    def cutting(reply_to: str, reply: BatchReply, *limits: Any, **more: Any) -> None:
        cut = [answer.model_copy(update={"truncated": "answer_bytes"}) for answer in reply.answers]
        push(reply_to, reply.model_copy(update={"answers": tuple(cut)}), *limits, **more)

    monkeypatch.setattr(inbox, "push", cutting)
    with pytest.raises(ProblemError, match="lower k or sample") as error:
        client.recall("c", k=5, sample=5)
    assert error.value.status == 413


def test_the_command_line_says_it(service: MemoryService) -> None:
    def message(*options: str) -> str:
        return run_cli(service.url, "search", "a", "--collection", "c", *options).stderr

    assert "may be more" not in message("--top-k", "5")
    first = message("--top-k", "50", "--offset", "3")
    assert "CLIPFLEET_LIMITS__ANSWER_BYTES" in first
    shown = int(first.split(" matches")[0].split()[-1])
    assert f"--offset {shown + 3}" in first
    assert "CLIPFLEET_LIMITS__CANDIDATES" in message("--top-k", "5", "--group-by", "label")


def test_the_description_of_the_service_has_it(service: MemoryService) -> None:
    document = httpx.get(f"{service.url}/openapi.json", trust_env=False).json()
    field = document["components"]["schemas"]["SearchOut"]["properties"]["truncated"]
    for word in ("answer_bytes", "candidates", "window"):
        assert word in field["description"]


# What a worker packs


def match(name: str, caption: str = "") -> MatchOut:
    return MatchOut(id=name, score=0.5, uri="u", label=None, metadata={"caption": caption})


def page(count: int, caption: str = "x" * 100) -> Answer:
    return Answer(matches=tuple(match(f"{n:03}", caption) for n in range(count)))


def packed(limits: list[int], *answers: Answer) -> list[PackedAnswer]:
    reply = BatchReply(batch_id="b", answers=answers)
    return list(read_reply(pack(reply, limits, max(limits))).answers)


@pytest.mark.parametrize("room", [0, 1, 100])
def test_as_many_matches_stay_as_have_room(room: int) -> None:
    """The room is that of four matches and a bit, of ten."""
    ten = page(10)
    four = packed([100_000], Answer(matches=ten.matches[:4]))[0].json
    cut = packed([len(four) + room], ten)[0]
    assert cut.json == four
    assert (cut.truncated, cut.error) == ("answer_bytes", "")
    assert packed([len(four) - 1], ten)[0].matches == ten.matches[:3]


def test_a_page_with_room_is_not_touched() -> None:
    whole = packed([100_000], page(10))[0]
    exactly = packed([len(whole.json)], page(10))[0]
    assert exactly == whole
    assert whole.truncated == ""


def test_small_pages_stay_whole_and_large_ones_share_the_rest() -> None:
    small, large = page(2), page(50)
    first, whole, second = packed([6_000] * 3, large, small, large)
    assert (whole.matches, whole.truncated) == (small.matches, "")
    assert abs(len(first.matches) - len(second.matches)) <= 1
    assert first.truncated == second.truncated == "answer_bytes"
    assert 6_000 - 400 < sum(len(answer.json) for answer in (first, whole, second)) <= 6_000


def test_a_page_of_one_match_that_has_room_is_whole_and_one_that_has_none_an_error() -> None:
    large = Answer(matches=(match("a", "x" * 600),))
    answers = packed([1_000] * 3, large, large, page(1, ""))
    assert [answer.error for answer in answers] == ["", "too-large", ""]
    assert [answer.truncated for answer in answers] == ["", "", ""]
    assert "fewer queries" in answers[1].detail


def test_a_page_cut_by_its_candidates_and_its_bytes_names_the_bytes() -> None:
    """There are more matches on this very page."""
    cut = page(10).model_copy(update={"truncated": "candidates"})
    assert packed([100_000], cut)[0].truncated == "candidates"
    assert packed([500], cut)[0].truncated == "answer_bytes"


@pytest.mark.parametrize("is_old", [True, False])
def test_a_gateway_of_the_release_before_gets_an_error_instead_of_a_part(is_old: bool) -> None:
    world = World()
    batch = QueryBatch(
        model="m", batch_id="b", reply_to="r", deadlines=(9e9,), packed=True,
        reply_bytes=1_000, queries=(world.query(TEXT, top_k=3, answer_bytes=175),),
    )  # fmt: skip
    fields = json.loads(batch.model_dump_json())
    if is_old:
        del fields["reply_bytes"]
    sent = QueryBatch.model_validate_json(json.dumps(fields))
    parts = QueryParts(world.embedder, world.store, world.catalogue, world.replies)
    answer_batch(sent, parts)
    raw = asyncio.run(world.replies.receive("r"))
    assert raw
    (answer,) = read_reply(raw).answers
    assert answer.error == ("too-large" if is_old else "")
    assert len(answer.matches) == (0 if is_old else 1)
    assert answer.truncated == ("" if is_old else "answer_bytes")


def test_a_reply_of_the_release_before_names_no_limit() -> None:
    raw = b'{"v":2,"batch_id":"b","answers":[{"size":2,"embedding":[],"error":""}]}\n[]'
    assert read_reply(raw).answers[0].truncated == ""
