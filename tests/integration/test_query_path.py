"""Queries through real gateways and a real queue; threads of the test play the workers."""

import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import pytest

from clipfleet.common.queue.messages import QueryBatch
from support import services
from support.gateways import Service, gateway
from support.prometheus import scrape
from support.query_fleet import MODEL, Fleet, answer, begin_search


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """URL of a Valkey of its own: consumers of an earlier test may still take messages."""
    with services.valkey(tmp_path / "valkey") as url:
        yield url


def texts(batches: Iterable[QueryBatch]) -> list[str]:
    return [str(query.terms[0].value) for batch in batches for query in batch.queries]


def require_refused(asking: HTTPConnection) -> None:
    with closing(asking):
        response = asking.getresponse()
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert "waiting" in json.load(response)["detail"]


def await_waiting(service: Service, count: int) -> None:
    def is_reached() -> bool:
        return scrape(service.url).value("clipfleet_queries_waiting", model=MODEL) == count

    services.eventually(is_reached, 30, f"{count} waiting queries")


def test_when_the_queue_is_full_others_are_told_when_and_who_hangs_up_is_never_sent(
    url: str, tmp_path: Path
) -> None:
    """Two batches are in flight, one more than there are workers, and one query waits."""
    tight = {"CLIPFLEET_LIMITS__QUERY_QUEUE": "1", "CLIPFLEET_QUERY_TIMEOUT_S": "60"}
    with gateway(tmp_path, url, **tight) as service, Fleet(service, url, 1) as fleet:
        batches = fleet.batches()
        first = begin_search(service, "first"), next(batches)
        second = begin_search(service, "second"), next(batches)
        third = begin_search(service, "third")
        await_waiting(service, 1)
        require_refused(begin_search(service, "fourth"))

        third.close()
        await_waiting(service, 0)
        fifth = begin_search(service, "fifth")
        await_waiting(service, 1)
        for asking, batch in (first, second):
            fleet.answer(batch)
            answer(asking)
        batch = next(batches)
        assert texts([batch]) == ["fifth"]
        fleet.answer(batch)
        answer(fifth)


def test_two_gateways_each_get_their_own_answers_from_workers_that_share_the_work(
    url: str, tmp_path: Path
) -> None:
    words = [f"word {n}" for n in range(40)]
    with (
        gateway(tmp_path, url) as first,
        gateway(tmp_path, url) as second,
        ThreadPoolExecutor(len(words) + 2) as threads,
        Fleet(first, url, 2) as fleet,
    ):
        fleet.put(words)
        both_have_one = threading.Barrier(2)

        def work() -> Counter[str]:
            share = Counter[str]()
            for batch in fleet.batches():
                if not share:
                    both_have_one.wait(30)
                share[batch.reply_to] += fleet.answer(batch)
            return share

        def best_match(service: Service, word: str) -> str:
            return str(answer(begin_search(service, word))["matches"][0]["id"])

        workers = [threads.submit(work) for _ in range(2)]
        for service in (first, second):
            assert list(threads.map(partial(best_match, service), words)) == words
        fleet.end()
        shares = [worker.result(30) for worker in workers]
        assert all(share.total() for share in shares)
        assert sorted(sum(shares, Counter[str]()).values()) == [len(words)] * 2


def test_a_worker_that_dies_with_a_batch_in_hand_costs_its_callers_alone(
    url: str, tmp_path: Path
) -> None:
    short = {"CLIPFLEET_QUERY_TIMEOUT_S": "3"}
    with gateway(tmp_path, url, **short) as service, Fleet(service, url, 1) as fleet:
        batches = fleet.batches()
        lost = begin_search(service, "lost"), next(batches)  # nobody answers it
        for word in ("one", "two", "three"):
            asking = begin_search(service, word)
            fleet.answer(next(batches))
            answer(asking)
        with closing(lost[0]) as asking:
            response = asking.getresponse()
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
            assert "no worker answered within 3 s" in json.load(response)["detail"]
        fleet.answer(lost[1])  # too late: an answer to nobody harms nobody
        asking = begin_search(service, "four")
        fleet.answer(next(batches))
        answer(asking)
