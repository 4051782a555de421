"""Mixed queries, groups, near-duplicates, pages and batches of queries over HTTP."""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipfleet import Client, ProblemError, SearchResult
from support.in_process import InProcess, run_cli
from support.stack import Up, document, finished

SAMPLES = Path(str(files("clipfleet"))) / "samples"
MUSIC = "/v1/collections/music/search"


@pytest.fixture(scope="module")
def music(carried_stack: Up) -> Iterator[Client]:
    """Drawings of instruments and of buildings, each with its folder's name as label."""
    with carried_stack.client() as client:
        fill(client)
        yield client


@pytest.fixture
def web(carried_stack: Up) -> Iterator[httpx.Client]:
    with carried_stack.http() as client:
        yield client


@pytest.fixture(scope="module")
def here(memory_service: InProcess) -> Iterator[httpx.Client]:
    """The same collection in this process, for requests that are refused."""
    with memory_service.client() as client, memory_service.http() as http:
        fill(client)
        yield http


def fill(client: Client) -> None:
    client.create_collection("music")
    for folder in ("music", "buildings"):
        source = {"type": "folder", "path": str(SAMPLES / folder), "label_from_folder": True}
        assert finished(client, client.index("music", source).id).state == "succeeded"


def stems(result: SearchResult) -> list[str]:
    return [Path(match.id).stem for match in result.matches]


def sample(name: str) -> str:
    (path,) = SAMPLES.rglob(f"{name}.png")
    return str(path)


def test_what_is_weighed_below_nothing_falls_and_the_rest_stays(music: Client) -> None:
    plain = stems(music.search("music", text="a musical instrument"))
    terms: list[dict[str, Any]] = [
        {"text": "a musical instrument"},
        {"text": "a guitar", "weight": -0.5},
    ]
    without = stems(music.search("music", terms=terms, top_k=100))
    for name in ("guitar", "electric-guitar"):
        assert without.index(name) > plain.index(name)
    assert {"harp", "violin"} <= set(without[:5])


def test_words_an_image_an_id_and_a_vector_mix(music: Client) -> None:
    """An image is most similar to itself, so the words change only the ranks after it."""
    guitar = sample("guitar")
    words = {"text": "a church", "weight": 1.5}
    alone = stems(music.search("music", id=guitar, top_k=100))
    ways: Sequence[dict[str, Any]] = (
        {"id": guitar},
        {"image": guitar},
        {"vector": music.image("music", guitar, include_values=True).values},
    )
    for way in ways:
        mixed = stems(music.search("music", terms=[way, words], top_k=100))
        assert mixed.index("church") < alone.index("church"), way
        assert mixed.index("banjo") < 20, way
    several: list[dict[str, Any]] = [
        {"id": guitar},
        {"image": Path(sample("drum"))},
        {"text": "a flute"},
    ]
    best = stems(music.search("music", terms=several, top_k=8))
    assert {"guitar", "drum"} <= set(best)


def test_a_single_term_is_the_plain_query(music: Client) -> None:
    ways: Sequence[dict[str, Any]] = ({"text": "a guitar"}, {"id": sample("guitar")})
    for way in ways:
        plain = music.search("music", **way).matches
        assert music.search("music", terms=[way]).matches == plain
        heavier = music.search("music", terms=[{**way, "weight": 7}]).matches
        assert [match.id for match in heavier] == [match.id for match in plain]
        assert [match.score for match in heavier] == pytest.approx([match.score for match in plain])


def test_pages_of_any_size_continue_each_other(music: Client) -> None:
    whole = stems(music.search("music", text="a house", top_k=50))
    for size in (3, 10):
        pages = [
            stems(music.search("music", text="a house", top_k=size, offset=offset))
            for offset in range(0, 50, size)
        ]
        assert [name for page in pages for name in page][:50] == whole


def test_groups_by_label_and_no_more_than_there_are(music: Client) -> None:
    matches = music.search("music", text="a guitar", group_by="label").matches
    assert [match.label for match in matches] == ["music", "buildings"]
    matches = music.search("music", text="a guitar", group_by="label", group_size=3).matches
    assert [match.label for match in matches].count("buildings") == 3
    assert len(music.search("music", text="x", group_by="no such field").matches) == 1


def test_near_duplicates_are_shown_once_and_counted(music: Client) -> None:
    numbers = music.image("music", sample("harp"), include_values=True).values
    copies = [{"id": f"copy {n}", "values": numbers} for n in range(3)]
    music.upsert("music", copies, namespace="copies")
    music.upsert("music", [{"id": "other", "values": [1.0] + [0.0] * 383}], namespace="copies")
    options: Any = {"namespace": "copies", "collapse": 0.97}
    matches = music.search("music", vector=numbers, **options).matches
    assert [(match.id, match.duplicates) for match in matches] == [("copy 0", 2), ("other", 0)]
    assert matches[0].values is None
    (second,) = music.search("music", vector=numbers, top_k=1, offset=1, **options).matches
    assert second.id == "other"


def test_the_upload_takes_every_option_and_judges_it_alike(
    music: Client, web: httpx.Client
) -> None:
    matches = music.search(
        "music",
        image=Path(sample("guitar")),
        group_by="label",
        group_size=2,
        collapse=0.99,
        include_metadata=False,
        filter={"label": {"$prefix": "mus"}},
    ).matches
    assert [match.label for match in matches] == ["music", "music"]
    assert [match.duplicates for match in matches] == [0, 0]
    picture = {"file": ("a.png", Path(sample("guitar")).read_bytes())}
    for form, message in (
        ({"group_size": "2"}, "group_size needs group_by"),
        ({"collapse": "2"}, "collapse"),
        ({"filter": "["}, "filter is not JSON"),
        ({"filter": "[1]"}, "filter"),
        ({"group_by": "pk"}, "not a field to group by"),
        ({"unknown": "1"}, "unknown"),
    ):
        refused = web.post(f"{MUSIC}/image", data=form, files=picture)
        assert refused.status_code == 422, refused.text
        assert message in refused.json()["detail"], refused.text
    assert web.post(
        f"{MUSIC}/image", data={"min_score": "", "filter": ""}, files=picture
    ).is_success


WRONG: list[tuple[Any, str]] = [
    ({"terms": []}, "at least 1"),
    ({"terms": [{"text": "x"}], "text": "x"}, "exactly one"),
    ({"terms": [{"text": "x", "id": "y"}]}, "exactly one"),
    ({"terms": [{"weight": 1}]}, "exactly one"),
    ({"terms": [{"terms": []}]}, "unknown field"),
    ({"terms": [{"text": "x"}] * 17}, "limit is 16"),
    ({"terms": [{"text": "x", "weight": 0}]}, "have the weight 0"),
    ({"terms": [{"text": "x", "weight": 1e9}]}, "1000"),
    ({"terms": [{"text": "x"}, {"text": "x", "weight": -1}]}, "cancel"),
    ({"terms": [{"text": "x"}, {"vector": [1, 2]}]}, "terms[1].the vector has 2 numbers"),
    ({"terms": [{"text": "x"}, {"image": {"base64": "AAAA"}}]}, "terms[1]."),
    ({"terms": [{"image": {"url": "http://127.0.0.1:9/x"}}]}, "terms[0].image.url"),
    ({"text": "x", "collapse": 0}, "greater than 0"),
    ({"text": "x", "group_by": "a\0b"}, "NUL"),
    ({"text": "x", "group_by": "namespace"}, "not a field to group by"),
    ({"text": "x", "group_by": "label", "top_k": 500, "offset": 1_501}, "at most 2000"),
    ({"text": "x", "filter": {"label": {"$prefix": 1}}}, "$prefix is for text"),
    ({"text": "x", "filter": {"width": {"$prefix": "1"}}}, "$prefix is for text"),
]


def test_what_cannot_be_searched_for_is_refused_with_the_reason(here: httpx.Client) -> None:
    for body, message in WRONG:
        refused = here.post(MUSIC, json=body)
        assert refused.status_code == 422, (body, refused.text)
        assert message in refused.json()["detail"], refused.text


def test_many_queries_at_once_are_answered_each_for_itself(music: Client) -> None:
    queries: list[dict[str, Any]] = [
        {"text": "a guitar", "top_k": 1},
        {"id": "unknown"},
        {"image": Path(sample("harp")), "top_k": 1},
        {"terms": [{"text": "a guitar"}, {"text": "a guitar", "weight": -1}]},
        {"text": "a church", "filter": {"label": "buildings"}, "top_k": 2},
    ]
    guitar, unknown, harp, nothing, church = music.search_many("music", queries)
    assert isinstance(guitar, SearchResult)
    assert isinstance(harp, SearchResult)
    assert isinstance(church, SearchResult)
    assert (stems(harp), len(church.matches)) == (["harp"], 2)
    assert guitar.matches == music.search("music", text="a guitar", top_k=1).matches
    assert isinstance(unknown, ProblemError)
    assert isinstance(nothing, ProblemError)
    assert (unknown.status, nothing.status) == (404, 422)
    assert len(music.search_many("music", [{"text": f"number {n}"} for n in range(70)])) == 70


def test_a_bad_query_among_many_is_a_problem_of_its_own_and_a_bad_body_everybodys(
    here: httpx.Client,
) -> None:
    bad = [body for body, _ in WRONG]
    mixed = [
        {"text": "a harp", "filter": {"label": "music"}},
        7,
        None,
        [],
        {"text": "x", "unknown": 1},
        *bad,
    ]
    answer = here.post(f"{MUSIC}/batch", json={"queries": mixed})
    assert answer.status_code == 200, answer.text
    first, *others = answer.json()["results"]
    assert first["matches"][0]["label"] == "music"
    for result in others:
        assert result["problem"]["status"] == 422
        assert result["problem"]["request_id"] == answer.headers["x-request-id"]
    many = [{"text": "x"}] * 65
    bodies: Sequence[Any] = ({}, {"queries": []}, {"queries": many}, {"queries": "x"}, [])
    for body in bodies:
        assert here.post(f"{MUSIC}/batch", json=body).status_code == 422
    pictures = [{"terms": [{"image": {"base64": "AAAA"}}] * 13}] * 5
    assert here.post(f"{MUSIC}/batch", json={"queries": pictures}).status_code == 413
    unknown = "/v1/collections/unknown/search/batch"
    assert here.post(unknown, json={"queries": [{"text": "x"}]}).status_code == 404


NASTY = ['"', '\\"', "\\", "%", "_", "\n", "' or 1==1", '" or pk != "', '") or (pk != "', "\u2028"]


def test_no_string_of_a_query_reaches_beyond_itself(music: Client, web: httpx.Client) -> None:
    whole = music.collection("music").count
    assert whole > 20
    for text in NASTY:
        conditions: list[dict[str, Any]] = [
            {"filter": {"label": text}},
            {"filter": {"label": {"$prefix": text}}},
            {"filter": {"id": {"$in": [text]}}},
            {"filter": {text: text}},
            {"filter": {text: {"$prefix": text}}},
            {"filter": {"free": {"$prefix": text}}},
            {"namespace": text},
        ]
        queries = [{"text": "x", "top_k": 100, **condition} for condition in conditions]
        for query in queries:
            answer = web.post(MUSIC, json=query)
            assert (answer.status_code, answer.json().get("matches")) == (200, []), query
        assert web.post(MUSIC, json={"id": text}).status_code == 404
        assert web.post(MUSIC, json={"terms": [{"id": text}, {"text": "x"}]}).status_code == 404
        assert len(music.search("music", text="x", group_by=text).matches) == 1
        together = web.post(f"{MUSIC}/batch", json={"queries": queries}).json()["results"]
        assert [result["matches"] for result in together] == [[]] * len(queries)


def test_the_command_line_mixes_what_it_is_given(music: Client, carried_stack: Up) -> None:  # noqa: ARG001
    search = partial(run_cli, carried_stack.url, "search", "--collection", "music")

    def ids(*args: str) -> list[str]:
        matches = document(search(*args, "--json"))["matches"]
        return [Path(match["id"]).stem for match in matches]

    plain = ids("a musical instrument")
    without = ids("a musical instrument", "--not", "a guitar", "--top-k", "60")
    assert without.index("guitar") > plain.index("guitar")
    both = ids("--id", sample("guitar"), "--image", sample("harp"))
    assert {"guitar", "harp"} == set(both[:2])
    louder = ids("a church", "--id", sample("guitar"), "--weight", "3")
    assert louder[0] != "guitar"
    assert len(ids("a guitar", "--group-by", "label", "--collapse", "0.97")) == 2
    assert ids("a guitar", "--offset", "2", "--top-k", "3") == ids("a guitar")[2:5]
    for args in (("--not", "x"), ("x", "--weight", "2"), ("x", "--group-size", "2")):
        assert search(*args).returncode != 0
