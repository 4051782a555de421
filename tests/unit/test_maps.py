"""Maps of collections: the job, the routes, the client and the command."""

import csv
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from clipfleet.api.jobs.service import new_job_id
from clipfleet.cli import app
from clipfleet.client import Client
from clipfleet.common.blobs import Blobs
from clipfleet.common.http.maps import MapMethod
from clipfleet.common.identity import primary_key
from clipfleet.common.ledger import NewJob
from clipfleet.common.ledger.stored_images import VERSION, results_of, stored_images
from clipfleet.common.maps import NONE, OTHER, Colours, MapHead, Maps, Page
from clipfleet.common.store import Record, Vectors
from clipfleet.errors import NotFound, ProblemError
from clipfleet.results import MapPoints
from clipfleet.testing import MemoryService
from clipfleet.workers.analysis.colours import MOST_VALUES, RANGES, coloured
from clipfleet.workers.analysis.map import Map
from clipfleet.workers.analysis.pca import MAX_DIM, StreamedPca, in_unit_square
from clipfleet.workers.analysis.projection import has_pacmap, place, project
from support.gateway_harness import World as GatewayWorld
from support.mirror_harness import World as MirrorWorld

DIM = 16
PCA = {"method": "pca", "namespace": "n"}
needs_pacmap = pytest.mark.skipif(not has_pacmap(), reason="the extra `map` is not installed")


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService(dim=DIM) as service:
        yield service


@pytest.fixture
def client(service: MemoryService) -> Iterator[Client]:
    with service.client() as client:
        yield client


def clusters(count: int, dim: int, kinds: int = 3, seed: int = 1) -> Vectors:
    numbers = np.random.default_rng(seed)
    centres = numbers.normal(size=(kinds, dim))
    rows = centres[np.arange(count) % kinds] + 0.1 * numbers.normal(size=(count, dim))
    return rows.astype(np.float32)


def fill(client: Client, name: str, rows: Vectors, kinds: int = 3) -> None:
    client.create_collection(name, fields={"kind": "string"})
    client.upsert(
        name,
        [
            {"id": f"{n}.jpg", "values": row, "metadata": {"kind": f"k{n % kinds}"}}
            for n, row in enumerate(rows)
        ],
    )


def points_of(client: Client, name: str, **options: Any) -> MapPoints:
    job = client.wait(client.make_map(name, **options))
    assert job.state == "succeeded"
    namespace = options.get("namespace", "default")
    return client.map_points(name, namespace=namespace, field=options.get("field"))


def places(points: MapPoints) -> dict[str, tuple[float, float]]:
    return {image: (x, y) for image, x, y in zip(points.ids, points.x, points.y, strict=True)}


def test_each_image_gets_a_place_by_pca(client: Client) -> None:
    fill(client, "pca", clusters(30, DIM))
    before = client.map_of("pca")
    assert (before.state, before.job, before.points) == ("none", None, 0)
    job = client.wait(client.make_map("pca", "pca"))
    assert (job.state, job.task, job.total, job.done) == ("succeeded", "map", 30, 30)
    known = client.map_of("pca")
    assert (known.state, known.method, known.points, known.pages) == ("made", "pca", 30, 1)
    assert (known.map_id, known.not_on_map, known.sampled) == (job.id, 0, 0)
    assert sorted(known.fields) == ["kind", "label"]
    assert known.fields["kind"].values == ["k0", "k1", "k2"]
    assert known.fields["kind"].counts == [10, 10, 10]
    assert known.fields["label"].none == 30
    points = client.map_points("pca", field="kind")
    assert sorted(points.ids) == sorted(f"{n}.jpg" for n in range(30))
    assert points.next is None
    assert all(0 <= value <= 1 for value in (*points.x, *points.y))
    for image, code in zip(points.ids, points.codes, strict=True):
        assert code == int(image.removesuffix(".jpg")) % 3
    spread = np.ptp([points.x, points.y], axis=1)
    assert max(spread) == pytest.approx(1)


def test_the_same_seed_gives_the_same_map(client: Client) -> None:
    fill(client, "same", clusters(20, DIM))
    first = points_of(client, "same", method="pca")
    second = points_of(client, "same", method="pca")
    assert places(first) == places(second)
    assert first.map_id != second.map_id


@needs_pacmap
def test_pacmap_keeps_kinds_together(client: Client) -> None:
    fill(client, "pacmap", clusters(60, DIM))
    points = points_of(client, "pacmap", field="kind")
    known = client.map_of("pacmap")
    assert (known.method, known.sampled) == ("pacmap", 60)
    rows, codes = np.array([points.x, points.y]).T, np.array(points.codes)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (codes[distances.argmin(1)] == codes).mean() > 0.95
    assert places(points) == places(points_of(client, "pacmap", field="kind"))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("method", ["auto", "pca"])
def test_few_images_have_a_map(client: Client, count: int, method: MapMethod) -> None:
    name = f"few-{count}-{method}"
    fill(client, name, clusters(count, DIM))
    points = points_of(client, name, method=method)
    assert len(points.ids) == count
    assert np.isfinite([points.x, points.y]).all()


@pytest.mark.parametrize("method", ["auto", "pca"])
def test_identical_images_are_all_in_the_middle(client: Client, method: MapMethod) -> None:
    name = f"identical-{method}"
    fill(client, name, np.ones((20, DIM), np.float32))
    points = points_of(client, name, method=method)
    assert {*points.x, *points.y} == {0.5}
    assert client.map_of(name).method == "pca"


def test_a_collection_without_images_has_no_map(client: Client) -> None:
    client.create_collection("empty")
    assert client.wait(client.make_map("empty")).state == "succeeded"
    assert client.map_of("empty").state == "none"
    with pytest.raises(NotFound, match="no map of the namespace 'default' yet"):
        client.map_points("empty")


def test_a_namespace_sees_only_its_own_points(client: Client) -> None:
    fill(client, "tenants", clusters(5, DIM))
    client.upsert("tenants", [{"id": "x", "values": clusters(1, DIM)[0]}], namespace="b")
    assert len(points_of(client, "tenants").ids) == 5
    assert client.map_of("tenants", "b").state == "none"
    assert points_of(client, "tenants", namespace="b").ids == ["x"]
    assert client.map_of("tenants").points == 5


def test_newer_images_are_counted(client: Client) -> None:
    fill(client, "newer", clusters(5, DIM))
    points_of(client, "newer")
    client.upsert("newer", [{"id": "new", "values": clusters(1, DIM)[0]}])
    assert client.map_of("newer").not_on_map == 1
    assert len(points_of(client, "newer").ids) == 6
    assert client.map_of("newer").not_on_map == 0


def test_a_new_map_replaces_the_one_before_with_its_blobs(
    client: Client, service: MemoryService
) -> None:
    fill(client, "replaced", clusters(5, DIM))
    points_of(client, "replaced")
    blobs = Blobs(service.settings.blobs)
    before = blobs.keys_below("analysis")
    last = points_of(client, "replaced")
    after = [key for key in blobs.keys_below("analysis") if key not in before]
    assert after
    assert all(last.map_id in key for key in after)
    gone = [key for key in before if key not in blobs.keys_below("analysis")]
    assert len(gone) == len(after)
    assert not [key for key in blobs.keys_below("uploads") if "/map/" in key]
    generation = after[0].split("/")[1]
    client.delete_collection("replaced")
    assert blobs.keys_below(f"analysis/{generation}") == []


def test_wrong_requests_say_what_is_wrong(client: Client, service: MemoryService) -> None:
    fill(client, "wrong", clusters(5, DIM))
    points_of(client, "wrong")
    with pytest.raises(ProblemError, match="no colours for the field 'size', only for 'label'"):
        client.map_points("wrong", field="size")
    with pytest.raises(NotFound, match="the map has 1 pages"):
        client.map_points("wrong", page=1)
    url = f"{service.url}/v1/collections/wrong/map"
    for body in ({"method": "umap"}, {"seed": -1}, {"seed": 1.5}, {"namespace": ""}, {"x": 1}):
        answer = httpx.post(url, json=body)
        assert answer.status_code == 422, body
    assert httpx.get(url, params={"namespace": "\x00"}).status_code == 422
    assert httpx.post(f"{service.url}/v1/collections/none/map", json={}).status_code == 404


def test_points_that_the_client_has_are_not_sent_again(
    client: Client, service: MemoryService
) -> None:
    fill(client, "tagged", clusters(5, DIM))
    points_of(client, "tagged")
    url = f"{service.url}/v1/collections/tagged/map/points"
    tag = httpx.get(url).headers["ETag"]
    again = httpx.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(url, params={"field": "kind"}, headers={"If-None-Match": tag}).is_success


def test_keys_need_the_scope() -> None:
    keys: dict[str, dict[str, Any]] = {
        "reader": {"scopes": ["read"]},
        "admin": {"scopes": ["admin"]},
        "stranger": {"scopes": ["admin"], "collections": ["other"]},
    }
    with MemoryService(dim=DIM, api_keys=keys) as service:
        with service.client("admin") as client:
            fill(client, "c", clusters(4, DIM))
            points_of(client, "c")
        with service.client("reader") as client:
            assert client.map_of("c").points == 4
            with pytest.raises(ProblemError, match="scope 'write'"):
                client.make_map("c")
        with service.client("stranger") as client, pytest.raises(NotFound):
            client.map_points("c")


def test_the_command_makes_shows_and_writes_the_map(
    client: Client, service: MemoryService, tmp_path: Path
) -> None:
    fill(client, "cli", clusters(6, DIM))
    command = ["collections", "map", "cli", "--url", service.url]
    nothing = CliRunner().invoke(app, command)
    assert "it has no map" in nothing.stdout
    out = tmp_path / "points.csv"
    refused = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert refused.exit_code == 1
    done = CliRunner().invoke(
        app, [*command, "--method", "pca", "--field", "kind", "--follow", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "6 points by pca" in done.stdout
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["id"]: row["kind"] for row in rows} == {f"{n}.jpg": f"k{n % 3}" for n in range(6)}


# The parts


@needs_pacmap
def test_pacmap_places_further_images_beside_their_neighbours() -> None:
    rows = clusters(200, 8)
    points = project(rows[:120], 1, lambda: None)
    placed = place(rows[120:], rows[:120], points)
    distances = np.linalg.norm(placed[:, None] - points[None], axis=2)
    assert (distances.argmin(1) % 3 == np.arange(120, 200) % 3).mean() > 0.95


@needs_pacmap
def test_pacmap_ends_with_the_job() -> None:
    class Ended(Exception):
        pass

    def lost() -> None:
        raise Ended

    with pytest.raises(Ended):
        project(clusters(50, 8), 1, lost)


def test_batches_do_not_change_principal_components() -> None:
    rows = clusters(100, 8) + 100
    whole, parts = StreamedPca(8), StreamedPca(8)
    whole.add(rows)
    for start in range(0, 100, 7):
        parts.add(rows[start : start + 7])
    expected = whole.reduction(3).apply(rows)
    assert np.allclose(parts.reduction(3).apply(rows), expected, atol=1e-3)
    _, _, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert np.allclose(np.abs(expected), np.abs((rows - rows.mean(0)) @ axes[:3].T), atol=1e-3)


@pytest.mark.parametrize("dim", [1, 2, MAX_DIM + 1])
def test_embeddings_of_any_length_have_two_components(dim: int) -> None:
    rows = clusters(9, dim)
    pca = StreamedPca(dim)
    pca.add(rows)
    points = in_unit_square(pca.reduction(2).apply(rows))
    assert points.shape == (9, 2)
    assert np.isfinite(points).all()
    assert (np.ptp(points[:, 1]) > 0) == (dim > 1)


def test_colours_are_the_most_frequent_values() -> None:
    values = [*["a"] * 3, *["b"] * 2, None, True, 1, *(f"rare {n}" for n in range(MOST_VALUES))]
    colours, codes = coloured(values)
    assert colours.values[:2] == ["a", "b"]
    assert codes[:6] == [0, 0, 0, 1, 1, NONE]
    assert len(colours.values) == MOST_VALUES
    assert (colours.none, colours.other) == (1, codes.count(OTHER))
    assert sum(colours.counts) + colours.other + colours.none == len(values)
    assert sum(value in (True, 1) for value in colours.values) == 2


def test_many_numbers_become_ranges() -> None:
    colours, codes = coloured([*range(800), None])
    assert len(colours.values) == RANGES
    assert set(colours.counts) == {100}
    assert (codes[0], codes[799], codes[800]) == (0, RANGES - 1, NONE)


def test_a_map_whose_head_is_not_whole_is_not_there(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    maps = Maps(blobs, "analysis/g", "default")
    assert maps.head() is None
    head = MapHead(
        job_id="a", namespace="default", began_at=1, made_at=2, method="pca", seed=0, points=1,
        sampled=0, fields={"label": Colours(values=[], counts=[], none=1)},
    )  # fmt: skip
    page = Page(ids=["i"], x=[0.5], y=[0.5], codes={"label": [NONE]})
    maps.write(head, [page])
    (key,) = blobs.keys_below(f"analysis/g/map/{_folder(blobs)}/heads")
    blobs.put(key.replace("-a.json", "-b.json"), io.BytesIO(b'{"v": 1, "job_id"'))
    assert maps.head() == head
    assert maps.page(head, 0) == page
    maps.write(head.model_copy(update={"job_id": "c", "made_at": 3.0}), [page])
    assert len(blobs.keys_below("analysis/g")) == 2


def _folder(blobs: Blobs) -> str:
    return blobs.keys_below("analysis/g/map")[0].split("/")[3]


def test_two_jobs_do_not_make_one_map_at_once(tmp_path: Path) -> None:
    world = GatewayWorld(tmp_path)
    path = "/v1/collections/acme/map"
    first = world.ask(f"POST {path}", "admin", json={})
    assert (first.status_code, first.json()["task"]) == (202, "map")
    second = world.ask(f"POST {path}", "admin", json={})
    assert second.status_code == 409
    assert first.json()["id"] in second.json()["detail"]
    assert world.ask(f"POST {path}", "admin", json={"namespace": "b"}).status_code == 202
    assert world.ask(f"GET {path}", "admin").json()["state"] == "making"
    world.ask(f"POST /v1/jobs/{first.json()['id']}/cancel", "admin")
    assert world.ask(f"POST {path}", "admin", json={}).status_code == 202


def test_a_finishing_step_that_runs_twice_changes_nothing(tmp_path: Path) -> None:
    with ExitStack() as running:
        world = MirrorWorld(tmp_path, running)
        world.worker = replace(world.worker, tasks={"map": Map()})
        collection = world.collection()
        rows = [
            Record(primary_key("n", f"{n}"), f"{n}", "n", "", row)
            for n, row in enumerate(clusters(30, collection.dim))
        ]
        world.store.upsert(collection, rows)
        heads = []
        for _ in range(2):
            source = stored_images(
                "map", {"method": "pca", "namespace": "n"}, namespace="n", rows=4
            )
            new = NewJob(
                v=VERSION,
                id=new_job_id(),
                collection=collection.name,
                generation=collection.generation,
                model=collection.model,
                namespace="n",
                source=source,
            )
            world.ledger.create(new)
            world.finish()
            assert world.ledger.job(new.id).state == "succeeded"
            maps = Maps(world.worker.blobs, results_of(collection), "n")
            head = maps.head()
            assert head is not None
            assert head.job_id == new.id
            heads.append(maps.page(head, 0))
        assert heads[0] == heads[1]
        assert len(heads[0].ids) == 30
