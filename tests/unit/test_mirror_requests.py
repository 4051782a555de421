"""Mirrors as their users start and follow them: over HTTP, with the client, on the command line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipfleet import Client, InvalidRequest, JobFailed, Mirror, ProblemError
from clipfleet.common.http.mirror import MirrorIn, exceeds, limit_of
from support.in_process import GatedImages, InProcess
from support.mirror_harness import picture


@pytest.fixture(scope="module")
def service() -> Iterator[InProcess]:
    with InProcess() as running:
        yield running


@pytest.fixture
def client(service: InProcess) -> Iterator[Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes(picture(number))
    return folder


def names(ids: Any) -> list[str]:
    return sorted(os.path.basename(image_id) for image_id in ids)


def test_the_client_mirrors_and_names_what_is_gone(client: Client, photos: Path) -> None:
    first = client.index("client", photos, mirror=True, wait=True)
    assert first.mirror == Mirror(
        missing="delete", max_delete=0.1, dry_run=False, gone=0, deleted=0, new=None,
        changed=None, kept_because=None,
    )  # fmt: skip
    for name in ("03.png", "04.png"):
        os.remove(photos / name)
    (photos / "new.png").write_bytes(picture(100))
    dry = client.index("client", photos, mirror={"dry_run": True}, wait=True)
    assert dry.mirror is not None
    assert (dry.mirror.gone, dry.mirror.new, dry.mirror.deleted) == (2, 1, 0)
    assert client.collection("client").count == 20
    page = client.missing(dry, limit=1)
    assert (len(page.ids), page.total, page.next) == (1, 2, "1")
    last = client.missing(dry.id, limit=1, cursor="1")
    assert last.next is None
    assert names(page.ids + last.ids) == ["03.png", "04.png"]
    assert client.missing(dry, cursor="2").ids == []
    job = client.index("client", photos, mirror={"max_delete": "10%"}, wait=True)
    assert job.mirror is not None
    assert (job.done, job.mirror.deleted) == (1, 2)
    assert names(client.iter_missing(job)) == ["03.png", "04.png"]
    assert names(client.iter_ids("client")) == names(photos.iterdir())
    client.delete_job(job)
    plain = client.index("client", photos, wait=True)
    assert plain.mirror is None
    assert client.missing(plain).total == 0


def test_a_mirror_of_the_wrong_folder_fails_and_says_what_to_do(
    client: Client, photos: Path
) -> None:
    client.index("wrong", photos, mirror=True, wait=True)
    for number in range(19):
        os.remove(photos / f"{number:02}.png")
    with pytest.raises(JobFailed) as failed:
        client.index("wrong", photos, mirror=True, wait=True)
    job = failed.value.job
    assert job.error is not None
    assert (
        "19 of 20 images (95 %) are gone from the source, and max_delete allows 10 %" in job.error
    )
    assert job.mirror is not None
    assert (job.mirror.gone, job.mirror.deleted) == (19, 0)
    assert client.collection("wrong").count == 20


@pytest.mark.parametrize("number", [3, 500])
def test_many_missing_images_are_paged(client: Client, tmp_path: Path, number: int) -> None:
    rows = [json.dumps({"uri": f"{n}.png", "id": f"id-{n}"}) for n in range(number)]
    for n in range(number):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
    manifest = tmp_path / "photos.jsonl"
    manifest.write_text("\n".join(rows))
    collection = f"paged-{number}"
    client.index(collection, manifest, mirror=True, wait=True)
    manifest.write_text(rows[0])
    job = client.index(collection, manifest, mirror={"missing": "report"}, wait=True)
    ids, cursor = list[str](), ""
    while True:
        page = client.missing(job, limit=7, cursor=cursor)
        ids += page.ids
        assert page.total == number - 1
        if page.next is None:
            break
        cursor = page.next
    assert sorted(ids) == sorted(f"id-{n}" for n in range(1, number))


def test_a_second_mirror_of_a_source_is_refused_and_names_the_first(photos: Path) -> None:
    embedder = GatedImages()
    with InProcess(embedder=embedder) as service, service.client() as client:
        first = client.index("twice", photos, mirror=True)
        with pytest.raises(ProblemError, match=f"job {first.id} mirrors this source") as refused:
            client.index("twice", f"{photos}/", mirror=True, label_from_folder=True)
        embedder.gate.set()
        assert refused.value.status == 409
        client.wait(first)
        assert client.index("twice", photos, mirror=True, wait=True).state == "succeeded"


BAD = {
    "missing": "remove", "max_delete": 1.5, "dry_run": "yes", "dryrun": True,
}  # fmt: skip


@pytest.mark.parametrize("field", BAD)
def test_options_that_are_not_valid_are_named(
    service: InProcess, client: Client, photos: Path, field: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"mirror.{field}"):
        client.index("images", photos, mirror={field: BAD[field]})
    for mirror in (True, "delete"):
        body = {"source": {"type": "folder", "path": str(photos)}, "mirror": mirror}
        client.create_collection("bad")
        answer = httpx.post(f"{service.url}/v1/collections/bad/jobs", json=body)
        assert answer.status_code == 422
        assert "mirror is an object" in answer.json()["detail"]


def test_sources_that_cannot_be_mirrored_are_refused(client: Client, photos: Path) -> None:
    with pytest.raises(ProblemError, match="a source of type urls does not show what is gone"):
        client.index("images", ["https://example.org/a.jpg", photos], mirror=True)


@pytest.mark.parametrize(
    ("text", "limit"), [(0, 0), (5, 5), (0.0, 0.0), (1.0, 1.0), ("10%", 0.1), ("100%", 1.0)]
)
def test_a_limit_is_a_share_or_a_number(text: Any, limit: float) -> None:
    assert limit_of(text) == limit
    assert type(limit_of(text)) is type(limit)
    stored = MirrorIn.model_validate_json(MirrorIn(max_delete=text).model_dump_json())
    assert type(stored.max_delete) is type(limit)


@pytest.mark.parametrize(
    "text",
    [-1, -0.1, 1.1, float("nan"), float("inf"), True, None, "", "101%", "x", "5", [], 10**13],
)
def test_no_other_limit_is_taken(text: Any) -> None:
    with pytest.raises(ValueError, match="max_delete is a share"):
        limit_of(text)


def test_a_share_and_a_number_are_compared_as_they_say() -> None:
    assert not exceeds(10, 100, 0.1)
    assert exceeds(11, 100, 0.1)
    assert not exceeds(3, 3, 3)
    assert exceeds(4, 1_000, 3)
    assert not exceeds(0, 0, 0.1)
    assert exceeds(1, 1_000, 0)
    for percent in range(101):  # some of them are not exact as floats
        assert not exceeds(percent, 100, percent / 100), percent
        assert exceeds(percent + 1, 100, percent / 100), percent


def test_the_command_line_mirrors(service: InProcess, photos: Path) -> None:
    def index(*options: str) -> Any:
        return service.cli("index", str(photos), "--collection", "cli", *options)

    assert index("--mirror").returncode == 0
    os.remove(photos / "03.png")
    dry = index("--mirror", "--dry-run")
    assert dry.returncode == 0
    assert "dry run: 0 new" in dry.stdout
    assert "1 image gone from the source" in dry.stdout
    assert f"gone {photos}/03.png" in dry.stderr.replace("\n", "")
    refused = index("--mirror", "--max-delete", "0")
    assert refused.returncode == 1
    assert "max_delete allows 0 images" in refused.stdout
    done = json.loads(index("--mirror", "--json").stdout)
    assert done["mirror"]["deleted"] == 1
    listed = service.cli("jobs", "missing", done["id"])
    assert listed.stdout == f"{photos}/03.png\n"
    assert json.loads(service.cli("jobs", "missing", done["id"], "--json").stdout) == {
        "ids": [f"{photos}/03.png"]
    }
    assert "1 deleted" in service.cli("jobs", "show", done["id"]).stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--dry-run"], "--dry-run needs --mirror"),
        (["--missing", "report"], "--missing needs --mirror"),
        (["--max-delete", "5"], "--max-delete needs --mirror"),
        (["--mirror", "--max-delete", "5x"], "--max-delete is a share"),
        (["--mirror", "--upload"], "--mirror is for sources that the service reads"),
    ],
)
def test_options_without_sense_are_refused(
    service: InProcess, photos: Path, options: list[str], reason: str
) -> None:
    done = service.cli("index", str(photos), "--collection", "no", *options)
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.replace("│", " ").split())
