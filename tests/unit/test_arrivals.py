"""Messages of another release are refused at once, the error names both versions, and no query or
job is lost."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from clipfleet.api.dispatch.replies import dispatch_reply
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.ledger import Claim, Item, Job, Unknown
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.queue.messages import Answer, BatchReply, Message, QueryBatch
from clipfleet.common.queue.replies import MemoryReplies
from clipfleet.common.versions import OtherVersion, warn_once
from clipfleet.workers import app
from clipfleet.workers.queue import decode
from clipfleet.workers.queue.decode import decode_query_batch
from support import releases
from support.coalescer_harness import Desk, query
from support.ledgers import MODEL
from support.worker_harness import Planning, Workplace


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    warn_once.cache_clear()


def written(message: Message | BatchReply, **changes: Any) -> str:
    return json.dumps({**json.loads(message.model_dump_json()), **changes})


def batch(*texts: str) -> QueryBatch:
    queries = tuple(query(text) for text in texts)
    return QueryBatch(
        model=MODEL, batch_id="b", reply_to="r", deadlines=(1e12,) * len(texts), queries=queries
    )


def test_unknown_fields_are_no_reason_to_refuse() -> None:
    replies = MemoryReplies()
    assert decode_query_batch(written(batch("a"), colour="blue"), replies) == batch("a")
    assert replies.pushed == []


def newer_collection(message: QueryBatch) -> str:
    fields = json.loads(message.model_dump_json())
    fields["queries"][0]["search"]["collection"]["v"] = 2
    return json.dumps(fields)


def newer_kind(message: QueryBatch) -> str:
    fields = json.loads(message.model_dump_json())
    fields["queries"][0]["terms"][0]["kind"] = "sound"
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (written(batch("a", "b"), v=2, queries="shaped otherwise"), "version 2, this part"),
        (newer_collection(batch("a", "b")), "version 2, this part"),
        (newer_kind(batch("a", "b")), "are all parts of one release?"),
    ],
    ids=["message", "collection", "kind of term"],
)
def test_callers_of_a_query_that_is_not_understood_are_told_at_once(raw: str, why: str) -> None:
    replies = MemoryReplies()
    assert decode_query_batch(raw, replies) is None
    (reply,) = replies.pushed
    assert reply.batch_id == "b"
    assert [answer.error for answer in reply.answers] == ["unavailable", "unavailable"]
    assert why in reply.answers[0].detail


def test_callers_are_told_of_an_answer_that_is_not_understood() -> None:
    asyncio.run(_answers_that_are_not_understood())


async def _answers_that_are_not_understood() -> None:
    desk = Desk(workers=1)
    (first,) = await desk.ask("a")
    answer = BatchReply(batch_id=desk.sent[0].batch_id, answers=(Answer(),))
    dispatch_reply(written(answer, v=3).encode(), (desk.queries,))
    with pytest.raises(OtherVersion, match=r"answer is in version 3, .* reads version 1: upgrade"):
        await first
    (again,) = await desk.ask("b")
    answer = BatchReply(batch_id=desk.sent[1].batch_id, answers=(Answer(),))
    dispatch_reply(written(answer, answers=[{"error": "of a new kind"}]).encode(), (desk.queries,))
    with pytest.raises(ClipfleetError, match="could not be parsed"):
        await again
    (last,) = await desk.ask("c")
    answer = BatchReply(batch_id=desk.sent[2].batch_id, answers=(Answer(detail="c"),))
    dispatch_reply(written(answer, colour="blue").encode(), (desk.queries,))
    async with asyncio.timeout(10):
        assert (await last).detail == "c"


class Newer(MemoryLedger):
    """A ledger whose only job comes from a newer release, until `understood` is set."""

    understood = False

    def job(self, job_id: str) -> Job:
        if not self.understood:
            raise OtherVersion(f"job {job_id!r}", 2, [1])
        return super().job(job_id)

    def claim(
        self, model: str, worker: str, seconds: float, max_attempts: int, *, remote: bool = False
    ) -> Claim | Unknown | None:
        if not self.understood:
            return Unknown("job")
        return super().claim(model, worker, seconds, max_attempts, remote=remote)


def test_a_job_of_a_newer_release_is_left_to_others_and_says_so(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "PAUSE_S", 0.0)
    ledger = workplace.ledger = Newer(workplace.clock)
    workplace.plan([workplace.photo("a.jpg")])
    for _ in range(3):
        assert workplace.work() == 0
    assert workplace.chunk().attempt == 0
    ledger.understood = True
    assert ledger.job("job").waiting == (
        "worker w skips its chunks: job 'job' is in version 2, this part of clipfleet "
        "reads version 1: upgrade this part"
    )
    assert workplace.work() == 1
    assert ledger.job("job").waiting == ""


def test_a_worker_that_meets_a_newer_job_does_not_take_every_nudge(workplace: Workplace) -> None:
    """The worker pauses, unless it is about to stop."""
    pauses: list[float] = []

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return True

    workplace.ledger, workplace.stopping = Newer(workplace.clock), Stopping()
    workplace.plan([workplace.photo("a.jpg")])
    workplace.work()
    assert pauses == [decode.PAUSE_S]


@pytest.mark.parametrize(
    "raw",
    [
        (releases.GOLDEN / "0.1" / "ingest-chunk.json").read_text(),
        '{"v": 2, "colour": "blue"}',
        "no JSON",
    ],
    ids=["release 0.1", "newer", "no JSON"],
)
def test_every_message_in_the_queue_counts_as_a_nudge(
    raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Runtime:
        nudges = 0

        def ingest(self) -> str:
            self.nudges += 1
            return "no chunk was pending"

    runtime = Runtime()
    monkeypatch.setattr(app, "_runtime", [runtime])
    assert app.ingest(raw) == "no chunk was pending"
    assert runtime.nudges == 1


def test_a_source_with_an_option_of_a_newer_gateway_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    world = Planning(roots=(tmp_path,))
    world.job_of({"type": "folder", "path": str(tmp_path), "colour": "any"})
    assert world.finish() == [str(tmp_path / "a.jpg")]


def test_items_with_fields_of_a_newer_planner_are_worked_on(workplace: Workplace) -> None:
    item = workplace.photo("a.jpg")
    newer = Item.model_validate({**item.model_dump(), "colour": "blue"})
    assert workplace.run([newer]).state == "succeeded"
