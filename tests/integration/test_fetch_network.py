"""Addresses that the fetcher connects to, whatever a URL, a name or a redirect says."""

import shutil
import ssl
import subprocess
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from support.fetching import LIMIT, fetcher, refusal
from support.services import missing
from support.webserver import Page, body, site, to


def test_loopback_is_refused_without_a_connection_unless_allowed() -> None:
    with site({"/": body(b"secret")}) as there:
        for host in ("127.0.0.1", "localhost.", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
            reason = refusal(f"http://{host}:{there.port}/", allowed_networks=())
            assert "not a public one" in reason
            assert "ALLOWED_NETWORKS" in reason
        assert not there.connections


def test_a_redirect_to_an_inner_address_is_refused() -> None:
    with site({"/": body(b"secret")}, host="127.0.0.2") as inner:
        with site({"/": to(f"{inner.url}/")}) as there:
            assert "127.0.0.2" in refusal(f"{there.url}/")
        assert not inner.connections


def test_a_name_that_resolves_otherwise_the_second_time_gains_nothing() -> None:
    with site({"/": body(b"inner")}, host="127.0.0.2") as inner:
        with site({"/": body(b"checked")}, port=inner.port):
            answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]])
            with fetcher(look_up=lambda *_: next(answers)) as fetch:
                url = f"http://rebinding.example:{inner.port}/"
                assert fetch.get(url, LIMIT) == b"checked"
        assert not inner.connections


def test_a_name_with_an_inner_address_among_others_is_refused() -> None:
    with site({"/": body(b"x")}) as there:
        both = ["127.0.0.1", "127.0.0.2"]
        reason = refusal(f"http://mixed.example:{there.port}/", look_up=lambda *_: both)
        assert "mixed.example" in reason
        assert "127.0.0" not in reason
        assert not there.connections


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    networks = (ip_network("127.0.0.0/8"),)
    with site({"/": body(b"x")}) as there:
        two = ["127.0.0.9", "127.0.0.1"]
        with fetcher(look_up=lambda *_: two, allowed_networks=networks, tries=1) as fetch:
            assert fetch.get(f"http://two.example:{there.port}/", LIMIT) == b"x"
            assert there.seen[0].headers["Host"] == f"two.example:{there.port}"


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with site({"/": body(b"x")}) as there, site({}) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with fetcher() as fetch:
            assert fetch.get(f"{there.url}/", LIMIT) == b"x"
        assert not proxy.connections


def test_redirects_are_followed_without_cookies_and_not_for_ever() -> None:
    pages: dict[str, Page] = {
        "/1": lambda request: request.answer(b"", 301, Location="2?é", Set_Cookie="a=b"),
        "/3": body(b"there"),
        "/loop": to("/loop"),
        "/file": to("file:///etc/passwd"),
        "/bad": to("http://[/"),
        "/auth": to("http://user:secret@127.0.0.1/"),
    }
    with site(pages) as there, fetcher() as fetch:
        pages["/2"] = to(f"//127.0.0.1:{there.port}/3", 308)
        assert fetch.get(f"{there.url}/1", LIMIT) == b"there"
        assert not any("Cookie" in request.headers for request in there.seen)
        assert "more than 5 times" in refusal(f"{there.url}/loop")
        assert "only http and https" in refusal(f"{there.url}/file")
        assert "not a valid URL" in refusal(f"{there.url}/bad")
        assert "secret" not in refusal(f"{there.url}/auth")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of images.example, in one file."""
    if not shutil.which("openssl"):
        missing("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, signed = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=images.example", "-addext", "subjectAltName=DNS:images.example"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", signed], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes(key.read_bytes() + signed.read_bytes())
    return both


def test_tls_goes_by_the_name_though_the_connection_goes_to_the_address(certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    with site({"/": body(b"x"), "/down": to("http://127.0.0.1/")}, tls=certificate) as there:
        local: dict[str, Any] = {"look_up": lambda *_: ["127.0.0.1"], "tls": trusting}
        with fetcher(**local) as fetch:
            url = f"https://images.example.:{there.port}"
            assert fetch.get(f"{url}/", LIMIT) == b"x"
        assert "Hostname mismatch" in refusal(f"https://other.example:{there.port}/", **local)
        assert "https to http" in refusal(f"{url}/down", **local)
        assert "self-signed" in refusal(f"{url}/", look_up=local["look_up"])
    with site({}) as plain:
        assert "no secure connection" in refusal(plain.url.replace("http", "https"))
