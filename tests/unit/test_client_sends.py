"""The requests that the clients send, as a real HTTP server receives them."""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from clipfleet import InvalidRequest, JobFailed, NotFound
from clipfleet.client import _requests
from clipfleet.common.settings import Limits
from support.clients import Answer, Seen, client_class, in_turn, job, service

__all__ = ["client_class"]

NOTHING = {"matches": [], "took_ms": 1.0}


def nothing(_: Seen) -> Answer:
    return Answer(NOTHING)


@pytest.mark.parametrize("query", [{}, {"text": "a", "id": "b"}, {"image": b"x", "vector": [1]}])
def test_a_search_by_none_or_two_is_refused_before_it_is_sent(
    client_class: Any, query: dict[str, Any]
) -> None:
    with (
        service(nothing) as there,
        client_class(there.url) as client,
        pytest.raises(InvalidRequest, match="exactly one of text=, image=, id=, vector="),
    ):
        client.search(**query)
    assert there.seen == []


def test_words_go_to_the_default_collection_as_json(client_class: Any) -> None:
    with service(nothing) as there, client_class(there.url, api_key="secret") as client:
        client.search(text="a dog", top_k=3, filter={"year": None})
    (seen,) = there.seen
    assert (seen.method, seen.path) == ("POST", "/v1/collections/images/search")
    assert (seen.json["text"], seen.json["top_k"]) == ("a dog", 3)
    assert seen.json["filter"] == {"year": None}
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["user-agent"].startswith("clipfleet/")


def test_address_and_key_come_from_the_environment(
    client_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(nothing) as there:
        monkeypatch.setenv("CLIPFLEET_URL", there.url)
        monkeypatch.setenv("CLIPFLEET_API_KEY", "k")
        with client_class() as client:
            client.search("photos", id="a/b c")
    assert there.seen[0].path == "/v1/collections/photos/search"
    assert there.seen[0].headers["authorization"] == "Bearer k"


def test_an_image_goes_as_a_path_bytes_an_open_file_or_pillows(
    client_class: Any, tmp_path: Path
) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    with service(nothing) as there, client_class(there.url) as client, path.open("rb") as opened:
        for image in (path, str(path), path.read_bytes(), opened, Image.open(path)):
            client.search(image=image, filter={"year": 1}, include_values=True)
    assert {seen.path for seen in there.seen} == {"/v1/collections/images/search/image"}
    for seen in there.seen:
        assert sent_image(seen).getpixel((0, 0)) == (255, 0, 0)
        assert b'name="filter"\r\n\r\n{"year": 1}\r\n' in seen.body
        assert b'name="min_score"' not in seen.body


def test_an_image_named_by_its_url_is_left_to_the_service_to_fetch(client_class: Any) -> None:
    url = "HTTPS://example.org/a b.jpg?c=/d"
    with service(nothing) as there, client_class(there.url) as client:
        client.search("photos", image=url, top_k=3, filter={"year": None})
    (seen,) = there.seen
    assert seen.path == "/v1/collections/photos/search"
    assert seen.json["image"] == {"url": url}
    assert (seen.json["top_k"], seen.json["filter"]) == (3, {"year": None})


def test_a_pillow_image_keeps_saying_which_way_up_it_is(client_class: Any) -> None:
    image = Image.new("RGB", (40, 30))
    image.getexif()[0x0112] = 6
    with service(nothing) as there, client_class(there.url) as client:
        client.search(image=image)
    assert sent_image(there.seen[0]).getexif()[0x0112] == 6


def sent_image(seen: Seen) -> Any:
    start = seen.body.index(b"\x89PNG")
    return Image.open(io.BytesIO(seen.body[start:]))


def test_terms_go_with_their_images_inside(client_class: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    terms = [
        {"text": "a church", "weight": 2},
        {"image": tmp_path / "a.png"},
        {"image": "https://example.org/b.jpg", "weight": -0.5},
        {"vector": np.array([1, 0.5], np.float32)},
        {"id": "c"},
    ]
    with service(nothing) as there, client_class(there.url) as client:
        client.search(terms=terms, group_by="label", group_size=2, collapse=0.97)
    (seen,) = there.seen
    assert seen.path == "/v1/collections/images/search"
    assert seen.json["terms"] == [
        {"text": "a church", "weight": 2},
        {"image": {"base64": "cGljdHVyZQ=="}},
        {"image": {"url": "https://example.org/b.jpg"}, "weight": -0.5},
        {"vector": [1, 0.5]},
        {"id": "c"},
    ]
    rules = ("group_by", "group_size", "collapse")
    assert [seen.json[name] for name in rules] == ["label", 2, 0.97]


@pytest.mark.parametrize(
    "terms", [[], [{}], [{"text": "x", "id": "y"}], [{"text": "x", "weigth": 2}]]
)
def test_terms_that_cannot_be_meant_are_refused_before_they_are_sent(
    client_class: Any, terms: Any
) -> None:
    with (
        service(nothing) as there,
        client_class(there.url) as client,
        pytest.raises(InvalidRequest),
    ):
        client.search(terms=terms)
    assert there.seen == []


def test_many_queries_go_by_the_64_and_errors_come_in_their_places(client_class: Any) -> None:
    gone = {"type": "urn:problem:clipfleet:not-found", "title": "t", "status": 404}
    problem = {**gone, "detail": "there is no x", "instance": "", "request_id": "r"}

    def answered(seen: Seen) -> Answer:
        batch = seen.json["queries"]
        results = [NOTHING if "text" in query else {"problem": problem} for query in batch]
        return Answer({"results": results, "took_ms": 1.0})

    queries = [{"text": f"{n}", "top_k": 3} for n in range(99)]
    with service(answered) as there, client_class(there.url) as client:
        answers = client.search_many("photos", [*queries, {"id": "x"}, {"image": b"picture"}])
        assert client.search_many("images", []) == []
    assert [len(seen.json["queries"]) for seen in there.seen] == [64, 37]
    assert {seen.path for seen in there.seen} == {"/v1/collections/photos/search/batch"}
    assert there.seen[0].json["queries"][0] == {"text": "0", "top_k": 3}
    assert there.seen[1].json["queries"][-1] == {"image": {"base64": "cGljdHVyZQ=="}}
    assert [answer.matches for answer in answers[:99]] == [[]] * 99
    assert [(type(answer), answer.status, str(answer)) for answer in answers[99:]] == [
        (NotFound, 404, "there is no x")
    ] * 2


def test_an_image_opened_as_text_is_refused(client_class: Any) -> None:
    with client_class() as client, pytest.raises(InvalidRequest, match="binary"):
        client.search(image=io.StringIO("x"))


def test_numbers_may_be_an_array(client_class: Any) -> None:
    with service(nothing) as there, client_class(there.url) as client:
        client.search(vector=np.array([1, 0.5], np.float32))
        client.search(vector=(1, 0.5))
    assert [seen.json["vector"] for seen in there.seen] == [[1.0, 0.5]] * 2


def test_vectors_go_by_the_thousand_from_any_iterable(client_class: Any) -> None:
    def upserted(seen: Seen) -> Answer:
        return Answer({"upserted": seen.json["vectors"][-1]["metadata"]["n"] % 1000 + 1})

    rows = np.zeros((2_500, 2), np.float32)
    vectors = ({"id": f"v{n}", "values": row, "metadata": {"n": n}} for n, row in enumerate(rows))
    with service(upserted) as there, client_class(there.url) as client:
        assert client.upsert("own", vectors, namespace="mine") == 2_500
    assert len(there.seen) == 3
    assert {seen.path for seen in there.seen} == {"/v1/collections/own/vectors"}


def test_no_request_is_larger_than_the_service_takes() -> None:
    """The limit holds for vectors and images of any size."""
    limits = Limits()
    row, image = np.full(20_000, -1.2345678901234567e-5), bytes(6_000_000)
    vectors = ({"id": f"{n}", "values": row} for n in range(80))
    sizes = [len(json.dumps(call.json)) for call in _requests.upsert("own", vectors, "n")]
    assert len(sizes) == 3
    assert 8_000_000 < max(sizes) < limits.vectors_bytes

    queries: list[dict[str, Any]] = [{"image": image}] * 5 + [{"vector": row}] * 9
    searches = [call.json for call in _requests.search_many("own", queries)]
    assert [len(body["queries"]) for body in searches] == [2, 2, 4, 5, 1]
    embedded = [call.json for call in _requests.embed(None, [image] * 5, None)]
    assert [len(body["images"]) for body in embedded] == [2, 2, 1]
    for body in (*searches, *embedded):
        size, text = len(json.dumps(body)), 8_000_000
        count = json.dumps(body).count("base64")
        assert count * text <= limits.inline_bytes / 3 * 4
        assert size - count * text < limits.batch_bytes


def test_embeddings_come_in_the_order_of_the_texts(client_class: Any) -> None:
    def embedded(seen: Seen) -> Answer:
        rows = [[float(text)] for text in seen.json["texts"]]
        return Answer({"model": seen.json["model"], "dim": 1, "embeddings": rows})

    with service(embedded) as there, client_class(there.url) as client:
        rows = client.embed([str(n) for n in range(130)], model="m")
    assert rows == [[float(n)] for n in range(130)]
    assert [len(seen.json["texts"]) for seen in there.seen] == [64, 64, 2]


def test_embed_takes_texts_or_images_but_not_one_text(client_class: Any) -> None:
    with client_class() as client:
        for wrong in ({}, {"texts": ["a"], "images": [b"a"]}, {"texts": "a dog"}):
            with pytest.raises(InvalidRequest, match="texts"):
                client.embed(**wrong)


def test_all_failures_come_page_by_page(client_class: Any) -> None:
    failed = [
        {"id": str(n), "uri": "u", "reason": "r", "stage": "decode", "attempts": 1}
        for n in range(2_300)
    ]

    def page(seen: Seen) -> Answer:
        start, size = int(seen.query["offset"]), int(seen.query["limit"])
        return Answer({"failures": failed[start : start + size], "total": len(failed)})

    with service(page) as there, client_class(there.url) as client:
        assert [failure.id for failure in client.iter_failures("j1")] == [
            failure["id"] for failure in failed
        ]
    assert len(there.seen) == 3


def test_a_big_file_is_never_in_memory(client_class: Any, tmp_path: Path) -> None:
    big, size = tmp_path / "big.tif", 200_000_000
    with big.open("wb") as file:
        file.truncate(size)
    with service(lambda _: Answer(job())) as there, client_class(there.url) as client:
        tracemalloc.start()
        client.upload("images", big, create=False)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert there.seen[0].size > size
    assert peak < size / 10


def test_many_files_need_few_descriptors(client_class: Any, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    files = [tmp_path / f"{n}.jpg" for n in range(300)]
    for file in files:
        file.write_bytes(file.name.encode())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with service(lambda _: Answer(job())) as there, client_class(there.url) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 60, hard))
        try:
            client.upload("images", files, label="cat", on_existing="replace", create=False)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (seen,) = there.seen
    assert seen.body.count(b"filename=") == 300
    assert b'filename="299.jpg"\r\nContent-Type: image/jpeg\r\n\r\n299.jpg\r\n' in seen.body
    assert b'name="label"\r\n\r\ncat\r\n' in seen.body


def test_the_fields_of_exif_are_asked_for_only_if_wanted(client_class: Any, tmp_path: Path) -> None:
    """A service of 0.1 does not know the option."""
    (tmp_path / "a.jpg").write_bytes(b"a")
    with service(lambda _: Answer(job())) as there, client_class(there.url) as client:
        for exif in (False, True):
            client.index("images", tmp_path, exif=exif, create=False)
            client.upload("images", tmp_path / "a.jpg", exif=exif, create=False)
    plain, plain_upload, request, upload = there.seen
    assert "exif" not in plain.json
    assert b'name="exif"' not in plain_upload.body
    assert request.json["exif"] is True
    assert b'name="exif"\r\n\r\ntrue\r\n' in upload.body


def test_a_file_has_the_id_that_it_is_given(client_class: Any, tmp_path: Path) -> None:
    files = [tmp_path / "1.jpg", tmp_path / "2.jpg"]
    for file in files:
        file.write_bytes(b"x")
    with service(lambda _: Answer(job())) as there, client_class(there.url) as client:
        client.upload("images", files, ids=["rome/1", "é"], create=False)
    (seen,) = there.seen
    assert b'filename="rome/1"' in seen.body
    assert 'filename="é"'.encode() in seen.body


def test_what_cannot_be_uploaded_is_said_before_anything_is_sent(
    client_class: Any, tmp_path: Path
) -> None:
    with service(nothing) as there, client_class(there.url) as client:
        with pytest.raises(FileNotFoundError):
            client.upload("images", tmp_path / "missing.jpg")
        with pytest.raises(InvalidRequest, match="is a folder"):
            client.upload("images", [tmp_path])
        with pytest.raises(InvalidRequest, match="no files"):
            client.upload("images", [])
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.jpg").write_bytes(b"x")
        both = [tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"]
        with pytest.raises(InvalidRequest, match=r"two files have the id '1\.jpg'"):
            client.upload("images", both)
        with pytest.raises(InvalidRequest, match="two files have the id 'x'"):
            client.upload("images", both, ids=["x", "x"])
        with pytest.raises(InvalidRequest, match="1 ids for 2 files"):
            client.upload("images", both, ids=["x"])
        with pytest.raises(InvalidRequest, match="wait=True"):
            client.index("images", tmp_path, progress=True)
    assert there.seen == []


def test_the_collection_is_made_when_there_is_none(client_class: Any, tmp_path: Path) -> None:
    described = {"name": "new", "metric": "cosine", "model": "m", "dim": 2, "fields": {}}
    created = Answer({**described, "count": 0, "created_at": 0.0})
    answers = in_turn(Answer({}, 404), created, Answer(job()))
    with service(answers) as there, client_class(there.url) as client:
        client.index("new", tmp_path / "x" / ".." / "y")
    assert [seen.method for seen in there.seen] == ["GET", "PUT", "POST"]
    assert there.seen[2].json["source"]["path"].startswith("/")


def test_waiting_tells_of_every_state_and_outlasts_a_restart_of_the_service(
    client_class: Any,
) -> None:
    away = Answer({}, 503)
    answers = in_turn(Answer(job("queued")), away, None, Answer(job("succeeded", done=2)))
    heard: list[str] = []
    with service(answers) as there, client_class(there.url, retries=0) as client:
        ended = client.wait("j1", progress=lambda now: heard.append(now.state), every_s=0.01)
    assert (heard, ended.done) == (["queued", "succeeded"], 2)


def test_a_job_that_fails_as_a_whole_is_an_exception_for_who_waits(client_class: Any) -> None:
    failed = job("failed", error="the folder has gone")
    with (
        service(in_turn(Answer(job()), Answer(failed))) as there,
        client_class(there.url) as client,
        pytest.raises(JobFailed, match="job j1 failed: the folder has gone") as caught,
    ):
        client.index("images", "/photos", wait=True, create=False)
    assert caught.value.job.state == "failed"
    assert len(there.seen) == 2
