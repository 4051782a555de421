"""Any text given as a URL is either fetched or raises Unreadable, and no other error."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis.strategies import from_regex, sampled_from, text, tuples

from clipfleet.common.errors import Unreadable
from clipfleet.common.fetch import Fetcher
from clipfleet.common.http.retry_after import retry_after_s
from clipfleet.common.settings import Fetch

NEVER = (
    "",
    "church.jpg",
    "//example.org/a",
    "ftp://example.org/a",
    "file:///etc/passwd",
    "unix:///run/redis.sock",
    "data:image/png;base64,eA==",
    "http://",
    "http:///a",
    "http://:80/",
    "http://user@example.org/",
    "http://user:secret@example.org/",
    "http://example.org\\@127.0.0.1/",
    "http://example.org:0/",
    "http://example.org:65536/",
    "http://example.org:eighty/",
    "http://a..b/",
    "http://.a/",
    f"http://{'a' * 64}.org/",
    "http://[::1/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://0177.0.0.1/",
    "http://256.1.1.1/",
    "http://%31%32%37.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://a b/",
    "http://a\nb/",
    "http://a\r\nHost: b/",
    "http://a\0b/",
    "http://\ud800/",
    "http://xn--ä/",
)
INNER = (
    "http://127.0.0.1/",
    "HTTP://LOCALHOST/",
    "http://localhost./",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://017700000001/",
    "http://127.1:8000/",
    "http://0/",
    "https://[::1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
    "http://169.254.169.254/latest/meta-data/",
)


@pytest.fixture(scope="module")
def fetch() -> Iterator[Fetcher]:
    """A fetcher with the default settings, which allow no internal network."""
    fetcher = Fetcher(Fetch(tries=1))
    yield fetcher
    fetcher.close()


@pytest.mark.parametrize("url", NEVER)
def test_what_is_no_url_to_fetch_is_refused_with_a_reason(fetch: Fetcher, url: str) -> None:
    with pytest.raises(Unreadable) as caught:
        fetch.get(url, 1)
    assert "secret" not in str(caught.value)
    with pytest.raises(Unreadable), fetch.open(url):
        pass


@pytest.mark.parametrize("url", INNER)
def test_an_inner_address_is_refused_however_it_is_written(fetch: Fetcher, url: str) -> None:
    with pytest.raises(Unreadable, match="not a public one"):
        fetch.get(url, 1)


def nowhere(host: str, port: int) -> list[str]:
    assert host.isascii()
    assert 0 < port < 65_536
    host.encode("idna")  # as the real look-up does
    raise socket.gaierror(socket.EAI_NONAME, "no such name")


@pytest.fixture(scope="module")
def lost() -> Iterator[Fetcher]:
    fetcher = Fetcher(Fetch(tries=1), look_up=nowhere)
    yield fetcher
    fetcher.close()


hosts = from_regex(r"(xn--)?[^/?#]{0,9}(\.[^/?#]{0,9}){0,2}(:\d{0,6})?", fullmatch=True)


@given(tuples(sampled_from(["http://", "https://", "HTTP:", ""]), hosts | text(), text()))
@example(("http://", "xn--\x80", ""))
def test_no_text_breaks_it(lost: Fetcher, parts: tuple[str, str, str]) -> None:
    with pytest.raises(Unreadable):
        lost.get("".join(parts), 1)


@given(text() | from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\w*"))
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("9" * 400)
def test_no_retry_after_breaks_it(header: str) -> None:
    seconds = retry_after_s(header)
    assert seconds is None or seconds >= 0
