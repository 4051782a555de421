"""Queries through real gateways and a real queue; the workers are played by threads of ours."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from select import select

import pytest

from clipfleet.common.messages import QueryBatch
from support import services
from support.gateways import Service, gateway
from support.query_fleet import Fleet, answer, asked


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with services.valkey(tmp_path / "valkey") as made:
        yield made


def texts(batches: Iterable[QueryBatch]) -> list[str]:
    return [str(query.terms[0].value) for batch in batches for query in batch.queries]


def is_answered(asking: HTTPConnection, within_s: float) -> bool:
    return bool(select([asking.sock], [], [], within_s)[0])


def require_refused(asking: HTTPConnection) -> None:
    with closing(asking):
        response = asking.getresponse()
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert "waiting" in json.load(response)["detail"]


def with_a_place(service: Service, text: str) -> HTTPConnection:
    """Refused again and again, until it is not."""
    while is_answered(asking := asked(service, text), within_s=3):
        require_refused(asking)
    return asking


def test_when_the_queue_is_full_others_are_told_when_and_who_hangs_up_is_never_sent(
    url: str, tmp_path: Path
) -> None:
    """Two are in flight, a worker and one, and one waits."""
    tight = {"CLIPFLEET_LIMITS__QUERY_QUEUE": "1", "CLIPFLEET_QUERY_TIMEOUT_S": "60"}
    with gateway(tmp_path, url, **tight) as service, Fleet(service, url, 1) as fleet:
        batches = fleet.batches()
        first = asked(service, "first"), next(batches)
        second = asked(service, "second"), next(batches)
        late = [asked(service, "third"), asked(service, "fourth")]
        services.eventually(lambda: any(is_answered(one, 1) for one in late), 30, "a refusal")
        late.sort(key=lambda one: is_answered(one, 0))
        waiting, refused = late
        require_refused(refused)

        waiting.close()
        fifth = with_a_place(service, "fifth")
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
        gateway(tmp_path, url) as one,
        gateway(tmp_path, url) as other,
        Fleet(one, url, 2) as fleet,
        ThreadPoolExecutor(len(words) + 2) as threads,
    ):
        fleet.put(words)
        shares: list[Counter[str]] = [Counter(), Counter()]

        def work(share: Counter[str]) -> None:
            for batch in fleet.batches():
                share[batch.reply_to] += fleet.answer(batch)

        def found(service: Service, word: str) -> str:
            return str(answer(asked(service, word))["matches"][0]["id"])

        for share in shares:
            threads.submit(work, share)
        for service in (one, other):
            assert list(threads.map(partial(found, service), words)) == words
        both = sum(shares, Counter[str]())
        assert sorted(both.values()) == [len(words)] * 2
        assert all(share.total() for share in shares)
        fleet.end()
