"""Registered sources, by the client and the command line, with a whole service in memory."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipfleet import InvalidRequest, NotFound, ProblemError
from clipfleet.testing import write_keys
from support.clients import client_class
from support.in_process import InProcess
from support.services import eventually

__all__ = ["client_class"]

KEYS: dict[str, dict[str, Any]] = {"boss": {"name": "boss"}, "robot": {"name": "robot"}}


@pytest.fixture
def service() -> Iterator[InProcess]:
    with InProcess() as running:
        yield running


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    for number in range(3):
        photo(folder / "cats" / f"{number}.png", number)
    return folder


def photo(path: Path, shade: int) -> None:
    new = path.with_suffix(".new")
    Image.new("RGB", (20, 10), (shade, 9 * shade, 200)).save(new, "PNG")
    new.replace(path)


def test_a_source_is_registered_run_and_deleted(
    service: InProcess, client_class: Any, photos: Path
) -> None:
    with client_class(service.url) as client:
        with pytest.raises(NotFound):
            client.register_source("photos", "camera", photos)
        client.create_collection("photos")
        registered = client.register_source(
            "photos", "camera", photos, interval="1h", label_from_folder=True, namespace="n"
        )
        assert (registered.interval, registered.source) == (3_600, str(photos))
        eventually(lambda: client.source("photos", "camera").last_run, 60, "the first run")
        assert client.count("photos", namespace="n") == 3
        assert client.image("photos", str(photos / "cats" / "1.png"), namespace="n").label == "cats"
        assert client.pause_source("photos", "camera").paused
        job = client.run_source("photos", "camera", wait=True)
        assert (job.state, job.skipped) == ("succeeded", 3)
        assert not client.resume_source("photos", "camera").paused
        assert [source.name for source in client.sources("photos")] == ["camera"]
        client.delete_source("photos", "camera")
        assert client.sources("photos") == []
        for wrong in ("a b", "", "ä"):
            with pytest.raises(InvalidRequest, match="name"):
                client.source("photos", wrong)
        with pytest.raises(InvalidRequest, match="an interval is seconds, or a text such as"):
            client.register_source("photos", "camera", photos, interval="soon")


def test_a_folder_is_followed_by_the_paths_that_changed(
    service: InProcess, client_class: Any, photos: Path
) -> None:
    with client_class(service.url) as client:
        client.create_collection("photos")
        client.register_source("photos", "camera", photos)
        client.run_source("photos", "camera", wait=True)
        photo(photos / "cats" / "new.png", 50)
        photo(photos / "cats" / "1.png", 60)
        os.unlink(photos / "cats" / "0.png")
        answer = client.notify_source(
            "photos", "camera", ["cats/new.png", "cats/1.png", "cats/0.png", "notes.txt"]
        )
        assert (answer.accepted, answer.ignored) == (3, 1)

        def ended() -> Any:
            last = client.source("photos", "camera").last_run
            return last if last and last.cause == "events" else None

        run = eventually(ended, 60, "the run")
        job = client.job(run.job)
        assert (job.state, job.done, job.replaced, job.skipped) == ("succeeded", 2, 1, 1)
        assert job.source == f"{photos} (3 keys)"
        names = sorted(Path(image_id).name for image_id in client.iter_ids("photos"))
        assert names == ["1.png", "2.png", "new.png"]


def test_a_mirror_goes_on_from_what_events_have_changed(
    service: InProcess, client_class: Any, photos: Path
) -> None:
    with client_class(service.url) as client:
        client.create_collection("photos")
        mirror = {"max_delete": 1.0}
        client.register_source("photos", "camera", photos, mirror=mirror, interval="1h")
        eventually(lambda: client.source("photos", "camera").last_run, 60, "the first run")
        os.unlink(photos / "cats" / "0.png")
        photo(photos / "cats" / "3.png", 30)
        client.notify_source("photos", "camera", ["cats/0.png", "cats/3.png"])

        def names() -> list[str]:
            return sorted(Path(image_id).stem for image_id in client.iter_ids("photos"))

        eventually(lambda: names() == ["1", "2", "3"], 60, "the events")
        eventually(lambda: not client.source("photos", "camera").running, 60, "the end")
        job = client.run_source("photos", "camera", wait=True)
        assert (job.mirror.gone, job.mirror.deleted, job.skipped) == (0, 0, 3)
        os.unlink(photos / "cats" / "1.png")
        os.unlink(photos / "cats" / "3.png")
        job = client.run_source("photos", "camera", wait=True)
        assert (job.mirror.gone, job.mirror.deleted) == (2, 2)
        assert names() == ["2"]
        source = client.source("photos", "camera")
        assert source.job["mirror"]["max_delete"] == 1.0


def test_the_command_line(service: InProcess, photos: Path) -> None:
    def cli(*args: str) -> str:
        done = service.cli("sources", *args)
        assert done.returncode == 0, done
        return done.stdout

    assert "no sources" in cli("list")
    added = cli("add", "camera", str(photos), "--interval", "15m", "--label-from-folder")
    assert "camera" in added
    assert "15m" in added
    eventually(lambda: json.loads(cli("show", "camera", "--json"))["last_run"], 60, "the first run")
    assert "succeeded" in cli("list")
    shown = cli("show", "camera")
    assert "last run: job" in shown
    assert "(schedule)" in shown
    assert "paused" in cli("pause", "camera")
    job = json.loads(cli("run", "camera", "--wait", "--json"))
    assert (job["state"], job["skipped"]) == ("succeeded", 3)
    assert "scheduled" in cli("resume", "camera")
    assert cli("notify", "camera", "cats/1.png", "x.txt") == "1 accepted, 1 ignored\n"
    assert json.loads(cli("list", "--json"))["sources"][0]["name"] == "camera"
    assert cli("delete", "camera") == "deleted camera\n"
    for args in (("show", "camera"), ("list", "--collection", "nosuch"), ("run", "a b")):
        done = service.cli("sources", *args)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert len(done.stderr.splitlines()) == 1
    wrong = service.cli("sources", "add", "camera", str(photos), "--interval", "5s")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "CLIPFLEET_LIMITS__SOURCE_INTERVAL_S" in wrong.stderr


def test_a_revoked_key_stops_its_sources(photos: Path) -> None:
    with (
        InProcess(api_keys=KEYS, source_roots=(photos,)) as service,
        service.client("robot") as robot,
    ):
        robot.create_collection("photos")
        robot.register_source("photos", "camera", photos, interval=3_600)
        eventually(lambda: robot.source("photos", "camera").last_run, 60, "the first run")
        write_keys(service.folder / "keys.json", {"boss": KEYS["boss"]})
        with service.client("boss") as boss:

            def refusal() -> str:
                try:
                    boss.run_source("photos", "camera", wait=True)
                except ProblemError as error:
                    return error.detail if error.status == 403 else ""
                return ""

            refused = eventually(refusal, 60, "the revocation")
            assert refused.startswith("the API key 'robot', which registered the source, was revok")
            boss.register_source("photos", "camera", photos)
            assert boss.run_source("photos", "camera", wait=True).state == "succeeded"
