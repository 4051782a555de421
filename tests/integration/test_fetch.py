"""The fetcher against misbehaving web servers on loopback."""

import gzip
import itertools
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipfleet.common.errors import Unreadable
from support.fetching import LIMIT, fetcher, refusal
from support.webserver import Page, PageRequest, body, in_turn, site, status, to


def endless(request: PageRequest) -> None:
    request.begin()
    request.pour(itertools.repeat(b"x" * 10_000))


def dripping(request: PageRequest) -> None:
    def drops() -> Iterator[bytes]:
        while True:
            yield b"x"
            time.sleep(0.02)

    request.begin()
    request.pour(drops())


def dripping_headers(request: PageRequest) -> None:
    def drops() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield b"X-More: x\r\n"
            time.sleep(0.02)

    request.pour(drops())


def test_a_file_comes_over_one_connection_again_and_again_and_says_who_asks() -> None:
    with site({"/a": body(b"abc")}) as there, fetcher() as fetch:
        assert [fetch.get(f"{there.url}/a?b=%20c#d", 3) for _ in range(5)] == [b"abc"] * 5
        assert len(there.connections) == 1
        request = there.seen[0]
        assert request.path == "/a?b=%20c"
        assert request.headers["User-Agent"].startswith("clipfleet/")
        assert request.headers["Host"] == f"127.0.0.1:{there.port}"


def test_what_will_not_get_better_is_asked_for_once() -> None:
    with site({"/": status(404)}) as there:
        assert refusal(f"{there.url}/") == "the server answered 404 Not Found"
        assert len(there.seen) == 1


def test_what_may_get_better_is_tried_again() -> None:
    pages = {
        "/": in_turn(status(503, Retry_After="7"), PageRequest.reset, status(500), body(b"at last"))
    }
    slept: list[float] = []
    with site(pages) as there, fetcher(sleep=slept.append) as fetch:
        assert fetch.get(f"{there.url}/", LIMIT) == b"at last"
        assert len(there.seen) == 4
    request, *jittered = slept
    assert request == 7
    assert all(pause <= limit for pause, limit in zip(jittered, (0.02, 0.04), strict=True))


def test_but_not_for_ever_and_not_later_than_allowed() -> None:
    with site({"/": status(503), "/later": status(429, Retry_After="86400")}) as there:
        assert "503 Service Unavailable (3 tries)" in refusal(f"{there.url}/", tries=3)
        assert "429 Too Many Requests" in refusal(f"{there.url}/later")
        assert len(there.seen) == 4
    assert "cannot be reached" in refusal(f"{there.url}/")


@pytest.mark.parametrize("page", [dripping, dripping_headers])
def test_a_server_that_sends_a_byte_now_and_then_is_cut_off(page: Page) -> None:
    with site({"/": page}) as there:
        assert "did not answer in time" in refusal(f"{there.url}/", total_s=0.3)


def test_an_endless_body_is_read_to_the_limit() -> None:
    with site({"/": endless}) as there:
        assert f"more than {LIMIT} bytes" in refusal(f"{there.url}/")


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    def announced(request: PageRequest) -> None:
        request.begin(Content_Length="100001")
        request.reset()

    with site({"/": announced, "/just": body(b"x" * LIMIT)}) as there, fetcher() as fetch:
        assert len(fetch.get(f"{there.url}/just", LIMIT)) == LIMIT
        assert f"100001 bytes; the limit is {LIMIT}" in refusal(f"{there.url}/")


def test_gzip_that_nobody_asked_for_is_unpacked_and_its_bombs_do_not_go_off() -> None:
    several = gzip.compress(b"ab") + gzip.compress(b"c" * 70_000)
    pages = {
        "/good": body(several, Content_Encoding="gzip"),
        "/bomb": body(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"),
        "/many": body(gzip.compress(b"") * 10_000, Content_Encoding="gzip"),
        "/cut": body(several[:-9], Content_Encoding="gzip"),
        "/bad": body(b"no gzip", Content_Encoding="gzip"),
        "/other": body(b"?", Content_Encoding="br"),
        "/twice": body(b"?", Content_Encoding="gzip, gzip"),
    }
    with site(pages) as there, fetcher() as fetch:
        assert fetch.get(f"{there.url}/good", LIMIT) == b"ab" + b"c" * 70_000
        assert "more than" in refusal(f"{there.url}/bomb")
        assert "the limit" in refusal(f"{there.url}/many")
        assert "broke off" in refusal(f"{there.url}/cut")
        assert "damaged gzip" in refusal(f"{there.url}/bad")
        assert "not requested (br)" in refusal(f"{there.url}/other")
        assert "not requested (gzip, gzip)" in refusal(f"{there.url}/twice")


NO_ENCODINGS = ["none", "utf-8", "UTF-8", "binary", "aws-chunked", "identity", "", "aws-chunked,"]


def test_an_encoding_that_is_none_leaves_the_file_as_it_is() -> None:
    pages = {f"/{n}": body(b"x", Content_Encoding=name) for n, name in enumerate(NO_ENCODINGS)}
    packed = gzip.compress(b"x")
    pages["/both"] = body(packed, Content_Encoding="aws-chunked, gzip")
    with site(pages) as there, fetcher() as fetch:
        for path in pages:
            assert fetch.get(f"{there.url}{path}", LIMIT) == b"x", path


def test_deflate_is_unpacked_with_and_without_its_header() -> None:
    data = bytes(range(256)) * 300
    bare = zlib.compressobj(wbits=-15)
    raw = bare.compress(data) + bare.flush()

    def slowly(packed: bytes) -> Page:
        def page(request: PageRequest) -> None:
            request.begin(Content_Encoding="deflate", Content_Length=str(len(packed)))
            request.pour(packed[n : n + 1] for n in range(len(packed)))

        return page

    pages = {
        "/zlib": body(zlib.compress(data), Content_Encoding="deflate"),
        "/raw": body(raw, Content_Encoding="deflate"),
        "/slow": slowly(zlib.compress(data)),
        "/bomb": body(zlib.compress(bytes(50_000_000)), Content_Encoding="deflate"),
        "/cut": body(raw[:-9], Content_Encoding="deflate"),
        "/bad": body(b"\xff\xff no deflate", Content_Encoding="deflate"),
    }
    with site(pages) as there, fetcher() as fetch:
        for name in ("zlib", "raw", "slow"):
            assert fetch.get(f"{there.url}/{name}", LIMIT) == data
        assert "more than" in refusal(f"{there.url}/bomb")
        assert "broke off" in refusal(f"{there.url}/cut")
        assert "damaged deflate" in refusal(f"{there.url}/bad")


def test_a_redirect_to_nowhere_says_so() -> None:
    pages = {"/none": status(302), "/empty": to("")}
    with site(pages) as there:
        for path in pages:
            assert "without a Location" in refusal(f"{there.url}{path}")
        assert len(there.seen) == 2


def test_a_body_that_ends_early_is_no_file() -> None:
    def short(request: PageRequest) -> None:
        request.begin(Content_Length="10")
        request.pour(iter([b"abc"]))

    with site({"/": in_turn(short, body(b"x" * 10)), "/always": short}) as there:
        with fetcher() as fetch:
            assert fetch.get(f"{there.url}/", LIMIT) == b"x" * 10
        assert "broke off" in refusal(f"{there.url}/always")


def test_a_web_page_is_called_one_and_an_image_named_so_is_not() -> None:
    page = b"\xef\xbb\xbf\n <!DOCTYPE HTML><title>Log in</title>"
    pages = {
        "/page": body(page, Content_Type="image/jpeg"),
        "/part": body(b"<p>Gone", Content_Type="text/html; charset=utf-8"),
        "/image": body(b"\xff\xd8\xff\xe0", Content_Type="text/html"),
    }
    with site(pages) as there, fetcher() as fetch:
        assert "web page, not an image" in refusal(f"{there.url}/page")
        assert "web page, not an image" in refusal(f"{there.url}/part")
        assert fetch.get(f"{there.url}/image", LIMIT) == b"\xff\xd8\xff\xe0"


def test_no_more_requests_at_once_reach_a_host_than_it_may_have() -> None:
    lock, three_at_once = threading.Lock(), threading.Barrier(3)
    running, highest = 0, 0

    def counting(request: PageRequest) -> None:
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        three_at_once.wait(30)
        time.sleep(0.02)  # for a fourth
        with lock:
            running -= 1
        request.answer(b"x")

    with site({"/": counting}) as there, fetcher(per_host=3) as fetch:
        with ThreadPoolExecutor(12) as threads:
            urls = [f"{there.url}/?{n}" for n in range(24)]
            assert list(threads.map(fetch.get, urls, itertools.repeat(LIMIT))) == [b"x"] * 24
        assert highest == 3


def test_waiting_for_a_turn_costs_a_fetch_none_of_its_time() -> None:
    def slow(request: PageRequest) -> None:
        time.sleep(0.5)
        request.answer(b"x")

    with (
        site({"/": slow}) as there,
        fetcher(per_host=1, total_s=2.5, tries=1) as fetch,
        ThreadPoolExecutor(7) as threads,
    ):
        urls = [f"{there.url}/?{n}" for n in range(7)]
        assert list(threads.map(fetch.get, urls, itertools.repeat(LIMIT))) == [b"x"] * 7


def test_a_long_file_is_read_as_it_comes() -> None:
    more = threading.Event()

    def lines(request: PageRequest) -> None:
        def parts() -> Iterator[bytes]:
            yield b"first\n"
            more.wait(20)
            yield b"second\n"

        request.begin()
        request.pour(parts())

    with (
        site({"/": lines}) as there,
        fetcher(total_s=1.5) as fetch,
        fetch.open(f"{there.url}/") as opened,
    ):
        assert opened.readline() == b"first\n"
        time.sleep(1.6)  # longer than an image may take
        more.set()
        assert opened.read() == b"second\n"


def test_opening_tries_again_and_a_break_on_the_way_is_said() -> None:
    def broken(request: PageRequest) -> None:
        request.begin(Content_Length="100")
        request.pour(iter([b"begun"]))

    pages = {"/": in_turn(status(503), broken), "/gone": status(410)}
    with site(pages) as there, fetcher() as fetch:
        with fetch.open(f"{there.url}/") as opened, pytest.raises(Unreadable, match="broke off"):
            opened.read()
        with pytest.raises(Unreadable, match="410"), fetch.open(f"{there.url}/gone"):
            pass


def test_the_caller_of_open_keeps_its_own_errors() -> None:
    with site({"/": body(b"x")}) as there, fetcher() as fetch:
        with pytest.raises(KeyError), fetch.open(f"{there.url}/"):
            raise KeyError
        assert fetch.get(f"{there.url}/", LIMIT) == b"x"
