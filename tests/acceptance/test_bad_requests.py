"""Hostile requests: each gets a clear answer, and the next request is served."""

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.images import png_header
from support.in_process import InProcess
from support.stack import Up

DIM = 32
HOME = "/v1/collections/odd"
SEARCH = f"{HOME}/search"
VECTOR = [1.0] * DIM
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def web(memory_service: InProcess) -> Iterator[httpx.Client]:
    with memory_service.http() as http:
        fill(http)
        yield http


@pytest.fixture(scope="module")
def real(service: Up) -> Iterator[httpx.Client]:
    with service.http() as http:
        fill(http)
        yield http


def fill(web: httpx.Client) -> None:
    web.put(HOME, json={"fields": {"year": "int"}})
    vectors = [{"id": f"image {n}", "values": [n + 1.0, *VECTOR[1:]]} for n in range(3)]
    assert web.post(f"{HOME}/vectors", json={"vectors": vectors}).is_success


@pytest.fixture(autouse=True)
def all_is_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    name = "real" if "real" in request.fixturenames else "web"
    http: httpx.Client = request.getfixturevalue(name)
    answer = http.post(SEARCH, json={"text": "anything"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["matches"]) == 3


def refused(answer: httpx.Response, *statuses: int) -> str:
    assert answer.status_code in (statuses or (422,)), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 20_000
    detail: str = answer.json()["detail"]
    return detail


def sent(
    web: httpx.Client, body: str | bytes, path: str = SEARCH, **headers: str
) -> httpx.Response:
    return web.post(path, content=body, headers={**JSON, **headers})


@pytest.mark.parametrize(
    "number", ["NaN", "-Infinity", "1e400", "1" + "0" * 400, "1" + "0" * 5_000]
)
def test_no_number_is_beyond_numbers(web: httpx.Client, number: str) -> None:
    numbers = json.dumps(VECTOR).replace("1.0", number, 1)
    for body in (
        f'{{"vector": {numbers}}}',
        f'{{"terms": [{{"text": "x", "weight": {number}}}]}}',
        f'{{"text": "x", "min_score": {number}}}',
        f'{{"text": "x", "collapse": {number}}}',
        f'{{"text": "x", "filter": {{"year": {number}}}}}',
        f'{{"text": "x", "filter": {{"free": {{"$in": [{number}]}}}}}}',
    ):
        refused(sent(web, body), 400, 422)
    for extra in (f'"metadata": {{"a": [{{"b": {number}}}]}}', f'"bytes": {number}'):
        body = f'{{"vectors": [{{"id": "new", "values": {VECTOR}, {extra}}}]}}'
        refused(sent(web, body, f"{HOME}/vectors"), 400, 422)


@pytest.mark.parametrize("count", [0, -1, 10**9, 2**63, 10**400, "10", 1.5, True, None, [10]])
def test_a_count_is_a_whole_number_within_its_limits(web: httpx.Client, count: Any) -> None:
    refused(web.post(SEARCH, json={"text": "x", "top_k": count}))
    refused(web.post(f"{HOME}/recall", json={"k": count}))
    if count not in (0, True):
        refused(web.post(SEARCH, json={"text": "x", "offset": count}))


@pytest.mark.parametrize("yes", ["yes", "true", 1, 1.0, [True]])
def test_nothing_is_deleted_by_a_guess_at_what_was_meant(web: httpx.Client, yes: Any) -> None:
    assert "all" in refused(web.post(f"{HOME}/delete", json={"all": yes}))


@pytest.mark.parametrize("levels", [20, 150, 250, 900, 10_000])
def test_no_depth_of_json_gets_further_than_its_check(web: httpx.Client, levels: int) -> None:
    """Some depths can be read by the gateway but not by later parts."""
    for opening, closing in (
        ('{"$not":', "}"),
        ('{"$and":[', "]}"),
        ('{"a":', "}"),
        ('{"a":[', "]}"),
    ):
        deep = opening * levels + '{"year": 1}' + closing * levels
        refused(sent(web, f'{{"text": "x", "filter": {deep}}}'), 400, 422)
        refused(sent(web, f'{{"text": "x", "unknown": {deep}}}'), 400, 422)
        refused(sent(web, f'{{"terms": [{deep}]}}'), 400, 422)
        vector = f'{{"id": "deep", "values": {VECTOR}, "metadata": {deep}}}'
        refused(sent(web, f'{{"vectors": [{vector}]}}', f"{HOME}/vectors"), 400, 422)
        form = web.post(f"{SEARCH}/image", data={"filter": deep}, files={"file": b"x"})
        refused(form, 400, 422)


def test_a_filter_of_any_size_is_refused_before_the_store_hears_of_it(web: httpx.Client) -> None:
    values = list(range(1_000))
    for condition, message in (
        ({"$or": [{"year": n} for n in range(10_000)]}, "conditions"),
        ({"$or": [{"year": {"$in": values}} for _ in range(110)]}, "lists more than"),
        (
            {"$or": [{"free": {"$nin": [f"{n}" for n in values[:500]]}} for _ in range(5)]},
            "more than 100 times",
        ),
        ({"free": {"$in": [*values, 1]}}, "at most 1000"),
        ({"free": "x" * 1_000_000}, "1000000 bytes"),
        ({"x" * 1_000_000: 1}, "metadata field"),
        ({"year": {"$regex": ".*"}}, "unknown operator"),
        ({"$where": "1 == 1"}, "unknown operator"),
    ):
        assert message in refused(web.post(SEARCH, json={"text": "x", "filter": condition}))


def test_of_many_faults_the_first_is_enough(web: httpx.Client) -> None:
    bodies: list[dict[str, Any]] = [
        {"terms": [{}] * 100_000},
        {"vector": ["x"] * 30_000},
        {"text": "x", **{f"unknown {n}": n for n in range(30_000)}},
        {"text": "x", "u" * 1_000_000: 1},
    ]
    for body in bodies:
        refused(web.post(SEARCH, json=body))
    refused(web.post(f"{HOME}/vectors", json={"vectors": [{}] * 100_000}))
    refused(web.post("/v1/embed", json={"texts": [1] * 100_000}))
    refused(web.post("/v1/embed", json={"texts": ["x" * 1_000_000]}))


ODD = ["\ud800", "a\udfffb", "\0", "\u202e\uffff", "../../etc", '" or pk != "', "🎉" * 3_000]


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:20]))
def test_no_text_is_too_odd_for_any_field(real: httpx.Client, text: str) -> None:
    """A string that is no valid text is refused; any other string stands for itself only."""
    numbers = {"values": VECTOR, "metadata": {}}
    for path, body in (
        (SEARCH, {"text": text}),
        (SEARCH, {"id": text}),
        (SEARCH, {"text": "x", "namespace": text}),
        (SEARCH, {"text": "x", "group_by": text}),
        (SEARCH, {"text": "x", "filter": {text: text}}),
        (SEARCH, {"text": "x", "filter": {"free": {"$prefix": text}}}),
        (SEARCH, {"text": "x", "filter": {"year": {text: 1}}}),
        (SEARCH, {"text": "x", text: 1}),
        (SEARCH, {"image": {"base64": text}}),
        (SEARCH, {"image": {"url": text}}),
        (f"{HOME}/vectors", {"vectors": [{"id": "x", **numbers, text: 1}]}),
        (f"{HOME}/vectors", {"vectors": [{"id": text, "values": [1.0]}]}),
        (f"{HOME}/jobs", {"source": {"type": text}}),
        (f"{HOME}/jobs", {"source": {"type": "bucket", "uri": text}}),
        (f"{HOME}/jobs", {"source": {"type": "urls", "urls": [text]}}),
        (f"{HOME}/count", {"namespace": text}),
        (f"{HOME}/delete", {"namespace": text, "all": True}),
        (f"{HOME}/recall", {"namespace": text}),
    ):
        answer = sent(real, json.dumps(body), path)
        if answer.status_code != 200:
            refused(answer, 403, 404, 422)
        elif "count" in path or "delete" in path:
            assert not any(answer.json().values())


def test_a_body_that_is_not_what_it_is_called_is_said_so(web: httpx.Client) -> None:
    plain = '{"text": "x"}'
    for body, kind in (
        ("hello", "application/json"),
        ("", "application/json"),
        (b'{"text": "\xff"}', "application/json"),
        (plain, "text/plain"),
        ("text=x", "application/x-www-form-urlencoded"),
        ("text=x", "multipart/form-data"),
        (b"\0\xff" * 99, "multipart/form-data; boundary=x"),
    ):
        answer = web.post(SEARCH, content=body, headers={"content-type": kind})
        refused(answer, 400, 422)
        answer = web.post(f"{SEARCH}/image", content=body, headers={"content-type": kind})
        refused(answer, 400, 422)
    packed = gzip.compress(plain.encode())
    refused(sent(web, packed, **{"content-encoding": "gzip"}), 415)
    assert "top_k" in refused(sent(web, '{"text": "x", "top_k": 1, "top_k": 0}'))


def test_the_real_stack_refuses_as_the_others_do(real: httpx.Client) -> None:
    """One request of each kind above, on the real stack."""
    deep = '{"$not":' * 20 + '{"year": 1}' + "}" * 20
    for body in (
        '{"text": "x", "min_score": 1e400}',
        '{"text": "x", "top_k": 10000000000}',
        f'{{"text": "x", "filter": {deep}}}',
        '{"text": "x", "filter": {"$where": "1 == 1"}}',
        json.dumps({"terms": [{}] * 1_000}),
        json.dumps({"image": {"base64": base64.b64encode(png_header(60_000, 60_000)).decode()}}),
    ):
        refused(sent(real, body), 400, 422)
    assert "all" in refused(real.post(f"{HOME}/delete", json={"all": "yes"}))
    refused(sent(real, gzip.compress(b'{"text": "x"}'), **{"content-encoding": "gzip"}), 415)


def test_an_image_that_claims_more_than_it_holds_is_refused(web: httpx.Client) -> None:
    for data in (
        png_header(2**31 - 1, 2**31 - 1),
        png_header(60_000, 60_000),
        b"GIF89a",
        b"\xff\xd8",
    ):
        text = base64.b64encode(data).decode()
        refused(web.post(SEARCH, json={"image": {"base64": text}}))
        refused(web.post("/v1/embed", json={"images": [{"base64": text}]}))
        refused(web.post(f"{SEARCH}/image", files={"file": ("a.png", data)}))
    for text in ("!!!", "AAA", "data:image/png;base64,", "data:,", "é"):
        refused(web.post(SEARCH, json={"image": {"base64": text}}))


def test_a_hundred_megabytes_are_too_much_however_they_come(web: httpx.Client) -> None:
    many = b" " * 100_000_001
    refused(web.post(f"{SEARCH}/image", files={"file": ("a.png", many)}), 413)
    pieces = (many[at : at + 1_000_000] for at in range(0, len(many), 1_000_000))
    refused(web.post(SEARCH, content=pieces, headers=JSON), 413)  # of a length nobody has said
