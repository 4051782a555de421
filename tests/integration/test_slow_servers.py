"""The fetcher against servers that say nothing, or next to nothing."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch import Cancellation, Cancelled, Fetcher
from clipfleet.common.fetch.network import pause
from support.fetching import LIMIT, fetcher, refusal
from support.services import eventually
from support.silent import silent
from support.webserver import Page, PageRequest, body, in_turn, site

SHORT: dict[str, Any] = {"read_s": 0.1, "total_s": 0.3, "tries": 1}


def failure(fetch: Fetcher, url: str) -> str:
    with pytest.raises(Unreadable) as caught:
        fetch.get(url, LIMIT)
    return str(caught.value)


def test_a_server_that_says_nothing_is_left_alone_after_some_fetches() -> None:
    with silent() as there, fetcher(**SHORT, breaker_timeouts=3) as fetch:
        reasons = [failure(fetch, there.url) for _ in range(5)]
        assert reasons[:3] == ["the server did not answer in time (1 tries)"] * 3
        assert all("let 3 fetches in a row time out" in reason for reason in reasons[3:])
        assert there.accepted == 3


def test_a_server_that_is_left_alone_is_asked_again_later_and_answers() -> None:
    def hang(request: PageRequest) -> None:
        request.rfile.read()

    pages = {"/": in_turn(hang, hang, body(b"at last"))}
    settings: dict[str, Any] = {**SHORT, "breaker_timeouts": 2, "breaker_s": 0.2}
    with site(pages) as there, fetcher(**settings) as fetch:
        url = f"{there.url}/"
        assert "did not answer" in failure(fetch, url)
        assert "did not answer" in failure(fetch, url)
        assert eventually(lambda: fetch.get(url, LIMIT), 10, "the answer") == b"at last"
        assert len(there.seen) == 3


def test_bytes_that_drip_count_as_silence() -> None:
    def drip(request: PageRequest) -> None:
        request.begin()
        request.pour(_drops())

    with site({"/": drip}) as there, fetcher(**SHORT, breaker_timeouts=1) as fetch:
        assert "did not answer in time" in failure(fetch, f"{there.url}/")
        assert "time out" in failure(fetch, f"{there.url}/")


def test_refusals_and_errors_of_a_server_do_not_count() -> None:
    pages = {"/": lambda request: request.answer(b"no", 503), "/gone": lambda a: a.answer(b"", 404)}
    with site(pages) as there, fetcher(**SHORT, breaker_timeouts=1) as fetch:
        for _ in range(3):
            assert "503" in failure(fetch, f"{there.url}/")
            assert "404" in failure(fetch, f"{there.url}/gone")


def test_where_a_redirect_leads_is_left_alone_and_not_who_redirects() -> None:
    with silent() as there:
        pages = {"/": lambda request: request.answer(b"", 302, Location=there.url)}
        with site({**pages, "/a": body(b"a")}) as front, fetcher(**SHORT, breaker_timeouts=1) as f:
            assert "did not answer" in failure(f, f"{front.url}/")
            assert "time out" in failure(f, f"{front.url}/")
            assert f.get(f"{front.url}/a", LIMIT) == b"a"


def test_by_default_one_silent_fetch_is_no_reason() -> None:
    with silent() as there:
        assert "did not answer in time" in refusal(there.url, **SHORT)


def _drops() -> Iterator[bytes]:
    while True:
        yield b"x"
        time.sleep(0.02)


def read_all(fetch: Fetcher, url: str) -> int:
    with fetch.open(url) as file:
        return sum(map(len, iter(lambda: file.read(1_000), b"")))


def stream_failure(fetch: Fetcher, url: str) -> str:
    with pytest.raises(Unreadable) as caught:
        read_all(fetch, url)
    return str(caught.value)


def dripping(request: PageRequest) -> None:
    request.begin()
    request.pour(_drops())


def dripping_before_the_next_piece(request: PageRequest) -> None:
    """The size of a piece as a number with zeros before it."""
    request.begin(Transfer_Encoding="chunked")
    request.pour(b"0" if drop == b"x" else drop for drop in _drops())


@pytest.mark.parametrize("page", [dripping, dripping_before_the_next_piece])
def test_a_stream_that_drips_is_given_up(page: Page) -> None:
    settings: dict[str, Any] = {"read_s": 0.2, "stream_bytes_s": 100_000}
    with site({"/": page}) as there, fetcher(**settings) as fetch:
        assert stream_failure(fetch, f"{there.url}/") == (
            "the server sends less than 100000 bytes a second (CLIPFLEET_FETCH__STREAM_BYTES_S)"
        )


def test_a_stream_that_takes_too_long_in_all_is_given_up() -> None:
    with site({"/": dripping}) as there, fetcher(stream_bytes_s=1, stream_s=0.3) as fetch:
        assert stream_failure(fetch, f"{there.url}/") == (
            "it took longer than 0.3 s (CLIPFLEET_FETCH__STREAM_S)"
        )


def test_what_the_reader_of_a_stream_takes_does_not_count() -> None:
    def two_pieces(request: PageRequest) -> None:
        request.begin(Content_Length=str(200_000))
        request.wfile.write(b"x" * 200_000)

    settings: dict[str, Any] = {"read_s": 0.1, "stream_s": 0.5, "stream_bytes_s": 100_000}
    with site({"/": two_pieces}) as there, fetcher(**settings) as fetch:
        with fetch.open(f"{there.url}/") as file:
            received = 0
            for _ in range(4):
                received += len(file.read(50_000))
                time.sleep(0.2)  # what is tested is that this time is not the server's
        assert received == 200_000


def cancelled(read: Callable[[], object], reached: threading.Event) -> BaseException | None:
    """What comes out of a call on another thread that is cancelled once it waits."""
    cancellation, errors = Cancellation(), list[BaseException]()

    def run() -> None:
        try:
            with cancellation.scope():
                read()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert reached.wait(30)
    cancellation.cancel()
    thread.join(30)
    assert not thread.is_alive()
    return errors[0] if errors else None


def test_a_fetch_that_waits_for_an_answer_ends_when_it_is_cancelled() -> None:
    with silent() as there, fetcher(read_s=600, total_s=600) as fetch:
        error = cancelled(lambda: fetch.get(there.url, LIMIT), there.reached)
        assert isinstance(error, Cancelled)
        eventually(lambda: there.open == 0, 30, "the end of the connection")
        assert there.accepted == 1


def test_a_stream_that_waits_for_more_ends_when_it_is_cancelled() -> None:
    reached, over = threading.Event(), threading.Event()

    def begin(request: PageRequest) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"begun"
            reached.set()
            over.wait(600)

        request.begin()
        request.pour(pieces())

    with site({"/": begin}) as there, fetcher(read_s=600) as fetch:
        error = cancelled(lambda: read_all(fetch, f"{there.url}/"), reached)
        over.set()
    assert isinstance(error, Cancelled)


def test_a_pause_before_the_next_try_ends_when_it_is_cancelled() -> None:
    reached = threading.Event()

    def busy(request: PageRequest) -> None:
        request.answer(b"", 503, Retry_After="500")
        reached.set()

    with site({"/": busy}) as there, fetcher(sleep=pause, total_s=600) as fetch:
        error = cancelled(lambda: fetch.get(f"{there.url}/", LIMIT), reached)
    assert isinstance(error, Cancelled)


def test_a_connection_with_tls_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "chain.pem")
    )
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    reached, over = threading.Event(), threading.Event()

    def hang(_: PageRequest) -> None:
        reached.set()
        over.wait(600)

    with site({"/": hang}, tls=tmp_path / "chain.pem") as there:
        url = there.url.replace("http://", "https://") + "/"
        with fetcher(tls=tls, read_s=600, total_s=600) as fetch:
            error = cancelled(lambda: fetch.get(url, LIMIT), reached)
        over.set()
    assert isinstance(error, Cancelled)


def test_nothing_is_begun_after_it_was_cancelled() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with silent() as there, fetcher() as fetch, cancellation.scope():
        with pytest.raises(Cancelled):
            fetch.get(there.url, LIMIT)
        assert there.accepted == 0
