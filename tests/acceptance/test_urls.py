"""Searching by an image that the service fetches from a URL."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipfleet import ProblemError
from clipfleet.embedded import commands
from support.stack import Up, document
from support.webserver import Site, body, site, status, to

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples"
NAMES = ("animals/cat.png", "animals/dog.png", "food/bread.png")


@pytest.fixture(scope="module")
def photos(carried_stack: Up) -> str:
    with carried_stack.client() as client:
        client.upload("urls", [SAMPLES / name for name in NAMES], wait=True)
    return "urls"


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    pages = {
        "/cat": body((SAMPLES / NAMES[0]).read_bytes(), Content_Type="text/plain"),
        "/dog": body((SAMPLES / NAMES[1]).read_bytes()),
        "/moved": to("/cat"),
        "/page": body(b"<!doctype html>", Content_Type="text/html"),
        "/text": body(b"no image"),
        "/gone": status(410),
        "/inside": to("http://127.0.0.2/"),
    }
    with site(pages) as there:
        yield there


def test_an_image_at_a_url_is_found(
    carried_stack: Up, photos: str, web: Site, client_class: type
) -> None:
    with client_class(carried_stack.url) as client:
        for path in ("cat", "moved"):
            best = client.search(photos, image=f"{web.url}/{path}", top_k=1).matches[0]
            assert best.id == "cat.png"
            assert best.score == pytest.approx(1, abs=1e-3)
        images = [SAMPLES / NAMES[1], f"{web.url}/cat", f"{web.url}/dog"] * 4
        rows = np.asarray(client.embed(images=images))
        assert rows.shape == (12, 384)
        assert np.allclose(rows[0], rows[2], atol=1e-4)
        assert np.allclose(rows[1], rows[10], atol=1e-4)
        assert not np.allclose(rows[0], rows[1], atol=1e-2)
    shown = carried_stack.cli(
        "search", "--image", f"{web.url}/dog", "--collection", photos, "--json"
    )
    assert document(shown)["matches"][0]["id"] == "dog.png"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("page", "image.url: the server answered with a web page, not an image"),
        ("gone", "image.url: the server answered 410 Gone"),
        ("inside", "image.url: the address of '127.0.0.2' is not a public one"),
        ("text", "no image of a known format"),
    ],
)
def test_what_cannot_be_searched_by_is_a_422_that_says_why(
    carried_stack: Up, photos: str, web: Site, path: str, message: str
) -> None:
    with carried_stack.http() as http:
        query = {"image": {"url": f"{web.url}/{path}"}}
        answer = http.post(f"/v1/collections/{photos}/search", json=query)
        assert answer.status_code == 422, answer.text
        assert message in answer.json()["detail"]
        images = {"images": [{"url": f"{web.url}/cat"}, query["image"]]}
        answer = http.post("/v1/embed", json=images)
        assert answer.status_code == 422, answer.text
        assert answer.json()["detail"].startswith("images[1]")


def test_the_services_own_parts_are_refused_alike_whether_somebody_listens_or_not(
    service: Up,
) -> None:
    """Different answers would let a stranger find out which ports are open."""
    details = set()
    listening, silent = int(service.url.rpartition(":")[2]), commands.free_port()
    with service.client() as client:
        client.create_collection("urls")
        for port in (listening, silent):
            with pytest.raises(ProblemError) as caught:
                client.search("urls", image=f"http://127.0.0.1:{port}/healthz")
            assert caught.value.status == 422
            details.add(caught.value.problem["detail"])
    assert len(details) == 1
    assert "not a public one" in details.pop()


def test_an_image_is_either_base64_or_a_url(service: Up) -> None:
    with service.http() as http:
        http.put("/v1/collections/urls")
        for image in ({}, {"base64": "eA==", "url": "http://a"}, {"url": ""}, {"url": 3}):
            answer = http.post("/v1/collections/urls/search", json={"image": image})
            assert answer.status_code == 422, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        for url in ("file:///etc/passwd", "no url", "http://u:p@example.org/"):
            answer = http.post("/v1/collections/urls/search", json={"image": {"url": url}})
            assert answer.json()["detail"].startswith("image.url: "), answer.text
