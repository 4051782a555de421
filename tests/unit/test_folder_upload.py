"""Folders of the client's machine become one job of a service in memory, whose ids are paths, and
an upload that broke off sends only what is missing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from clipfleet import NotFound, ProblemError
from clipfleet.client import folder_upload
from clipfleet.client.folder_upload import LocalFolders, Sent
from clipfleet.testing import MemoryService
from support.clients import client_class

__all__ = ["client_class"]


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService(limits={"image_bytes": 1_000_000}) as service:
        yield service


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two folders with images of the same names, and other things."""
    top = tmp_path / "Pictures"
    for red, folder in enumerate(("holiday", "rome")):
        (top / folder).mkdir(parents=True)
        for number in (1, 2, 3):
            image(top / folder / f"IMG_000{number}.jpg", red * 90, number * 40)
    (top / "rome" / "notes.txt").write_text("of the journey")
    (top / ".hidden.jpg").write_text("x")
    return top


def image(path: Path, red: int, green: int = 0) -> None:
    Image.new("RGB", (40, 30), (red, green, 7)).save(path, "PNG")


class Watched(list[tuple[str, str]]):
    """The requests of a client."""

    def __init__(self, client: Any) -> None:
        inner = getattr(client, "_client", client)
        hook = self._seen_async if hasattr(inner, "aclose") else self._seen
        inner._http.event_hooks["request"].append(hook)

    def _seen(self, request: httpx.Request) -> None:
        self.append((request.method, request.url.path))

    async def _seen_async(self, request: httpx.Request) -> None:
        self._seen(request)

    def uploads(self) -> int:
        return sum(path.endswith("/images") and method == "POST" for method, path in self)


def test_a_folder_is_one_job_whose_ids_are_paths(
    service: MemoryService, client_class: Any, pictures: Path
) -> None:
    name, seen = f"one-{client_class.__name__}", list[Sent]()
    with client_class(service.url) as client:
        job = client.upload_folder(
            name, pictures, label_from_folder=True, wait=True, sent=seen.append
        )
        assert (job.state, job.done, job.total) == ("succeeded", 6, 6)
        assert job.left_out == {".txt": 1}
        assert job.source == f"{pictures} (uploaded)"
        assert len(client.jobs(collection=name)) == 1
        assert client.image(name, "rome/IMG_0001.jpg").label == "rome"
        assert client.image(name, "holiday/IMG_0001.jpg").label == "holiday"
    assert (seen[-1].images, seen[-1].done, seen[-1].sent) == (6, 6, 6)
    assert service.parts.unfinished.older(-1, 10) == []


def test_only_new_and_changed_images_are_sent_again(service: MemoryService, pictures: Path) -> None:
    with service.client() as client:
        client.upload_folder("again", pictures, wait=True)
        image(pictures / "rome" / "IMG_0002.jpg", 200)
        image(pictures / "rome" / "IMG_0009.jpg", 201)
        sent = list[Sent]()
        job = client.upload_folder("again", pictures, wait=True, sent=sent.append)
        assert (job.done, job.skipped, job.replaced, job.total) == (2, 5, 1, 7)
        assert (sent[-1].sent, sent[-1].had) == (2, 5)
        job = client.upload_folder("again", pictures, label="x", wait=True, sent=sent.append)
        assert (job.done, job.replaced, job.updated) == (7, 7, 7)  # another label
        assert (sent[-1].sent, sent[-1].had) == (0, 7)
        shown = client.image("again", "rome/IMG_0009.jpg")
        assert (shown.label, shown.uri[:7]) == ("x", "upload:")
        assert client.upload_folder("again", pictures, label="x", wait=True).skipped == 7


def test_an_upload_that_broke_off_goes_on(
    service: MemoryService, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_upload, "MAX_IMAGES", 2)

    def interrupt(sent: Sent) -> None:
        if sent.sent == 4:
            raise KeyboardInterrupt

    with service.client() as client:
        with pytest.raises(KeyboardInterrupt):
            client.upload_folder("broken", pictures, sent=interrupt)
        assert client.jobs(collection="broken") == []
        image(pictures / "holiday" / "IMG_0001.jpg", 210)  # changes in between
        watched, sent = Watched(client), list[Sent]()
        job = client.upload_folder("broken", pictures, wait=True, sent=sent.append)
        assert (job.state, job.done, job.total, job.replaced) == ("succeeded", 6, 6, 0)
        assert (sent[-1].sent, sent[-1].had) == (3, 3)
        assert watched.uploads() == 2
        data = (pictures / "holiday" / "IMG_0001.jpg").read_bytes()
        best = client.search("broken", image=data, top_k=1).matches[0]
        assert (best.id, round(best.score, 3)) == ("holiday/IMG_0001.jpg", 1.0)


@pytest.mark.parametrize("at", [0, 4])
def test_two_uploads_of_a_folder_at_once_both_end_with_a_job(
    service: MemoryService, pictures: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The second one starts the job while the first one sends."""
    monkeypatch.setattr(folder_upload, "MAX_IMAGES", 2)
    name, others = f"both-{at}", list[str]()

    def overtake(sent: Sent) -> None:
        if sent.sent == at and not others:
            with service.client() as other:
                others.append(other.upload_folder(name, pictures, wait=True).id)
                image(pictures / "rome" / "IMG_0003.jpg", 250)  # which the other job does not have

    with service.client() as client:
        job = client.upload_folder(name, pictures, wait=True, sent=overtake)
        assert (job.state, job.total, job.done, job.skipped) == ("succeeded", 6, 1, 5)
        assert sorted(job.id for job in client.jobs(collection=name)) == sorted([job.id, *others])
        assert client.count(name) == 6
        data = (pictures / "rome" / "IMG_0003.jpg").read_bytes()
        best = client.search(name, image=data, top_k=1).matches[0]
        assert (best.id, round(best.score, 3)) == ("rome/IMG_0003.jpg", 1.0)


def test_files_that_cannot_be_sent_fail_alone_and_by_name(
    service: MemoryService, pictures: Path
) -> None:
    (pictures / "a link.jpg").symlink_to("rome/IMG_0001.jpg")
    (pictures / "gone.jpg").symlink_to(pictures / "nothing.jpg")
    (pictures / "outside.jpg").symlink_to("/etc/hostname")
    (pictures / "text.png").write_text("no image")
    (pictures / "large.png").write_bytes(bytes(1_000_001))
    (pictures / "other").symlink_to(pictures / "rome")
    with service.client() as client:
        job = client.upload_folder("few", pictures, wait=True)
        assert (job.state, job.done, job.failed) == ("partial", 7, 4)
        reasons = {failure.id: failure.reason for failure in client.failures(job).failures}
    assert reasons.keys() == {"gone.jpg", "outside.jpg", "text.png", "large.png"}
    assert "cannot be read" in reasons["gone.jpg"]
    assert "leads outside the folder" in reasons["outside.jpg"]
    assert "the limit is 1000000" in reasons["large.png"]


def test_requests_that_are_too_large_for_a_server_are_divided(pictures: Path) -> None:
    image(pictures / "huge.jpg", 3)
    with (pictures / "huge.jpg").open("ab") as file:
        file.write(bytes(50_000))
    limits = {"upload_files": 4, "request_bytes": 9_000}
    with MemoryService(limits=limits) as service, service.client() as client:
        watched = Watched(client)
        job = client.upload_folder("small", pictures, wait=True)
        assert (job.state, job.done, job.failed) == ("partial", 6, 1)
        (failure,) = client.failures(job).failures
        assert failure.id == "huge.jpg"
        assert "CLIPFLEET_LIMITS__REQUEST_BYTES" in failure.reason
        assert watched.uploads() < 12


def test_several_folders_and_files_have_ids_of_their_own(
    service: MemoryService, pictures: Path
) -> None:
    with service.client() as client:
        paths = [pictures / "rome", pictures / "holiday", pictures / "rome" / "IMG_0001.jpg"]
        job = client.upload_folder("several", paths, wait=True)
        assert (job.done, job.total) == (6, 6)
        assert client.image("several", "holiday/IMG_0003.jpg").id


def test_a_folder_without_images_is_refused_before_anything_is_sent(
    service: MemoryService, tmp_path: Path, pictures: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text("x")
    with service.client() as client:
        watched = Watched(client)
        with pytest.raises(ValueError, match=r"no images in .* \(looked for .apng"):
            client.upload_folder("nothing", empty)
        with pytest.raises(FileNotFoundError):
            client.upload_folder("nothing", tmp_path / "missing")
        with pytest.raises(NotFound):
            client.upload_folder("nothing", pictures, create=False)
    assert watched.uploads() == 0


def test_the_limits_hold_for_the_whole_upload(pictures: Path) -> None:
    limits = {"open_upload_images": 5, "open_uploads": 1}
    with MemoryService(limits=limits) as service, service.client() as client:
        with pytest.raises(ProblemError, match="OPEN_UPLOAD_IMAGES") as refused:
            client.upload_folder("limited", pictures)
        assert refused.value.status == 413
        with pytest.raises(ProblemError, match="CLIPFLEET_LIMITS__OPEN_UPLOADS"):
            client.upload_folder("limited", pictures / "rome")


def test_the_order_is_that_of_the_names(pictures: Path) -> None:
    ids = [image.id for image in LocalFolders(pictures).images()]
    assert ids == sorted(ids)
    assert len(ids) == 6
