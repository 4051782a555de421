"""Several sources as one job: lists, ranges of shards and patterns, of which each part may fail."""

import io
import os
import resource
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipfleet import ProblemError
from clipfleet.common.blobs import Blobs
from clipfleet.common.fetch import Fetcher
from clipfleet.common.ledger import Item
from clipfleet.common.settings import Fetch, Settings
from clipfleet.testing import MemoryService
from clipfleet.workers.sources import SourceError, open_source
from clipfleet.workers.storage.locations import Storage


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService() as service:
        yield service


def png(red: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (20, 20), (red, 1, 2)).save(target, "PNG")
    return target.getvalue()


def shard(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info, data = tarfile.TarInfo(name), png(number)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def picture(path: Path, red: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(red))
    return path


class World:
    """Sources with what jobs may read below one folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        blobs = Blobs(str(folder / "blobs"))
        options = Settings(
            **{"source_roots": (folder,), "blobs": str(folder / "blobs"), **settings}
        )
        self.storage = Storage(options, blobs, Fetcher(Fetch()))

    def items(self, source: dict[str, Any], after: str = "") -> list[tuple[Item, str]]:
        listed = open_source(source, self.storage, "j").stream(after)
        return [(entry.item, entry.cursor) for entry in listed]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def folder(path: Path | str, **more: Any) -> dict[str, Any]:
    return {"type": "folder", "path": str(path), **more}


def archive(path: Path | str, **more: Any) -> dict[str, Any]:
    return {"type": "archive", "uri": str(path), **more}


def of_list(*sources: dict[str, Any]) -> dict[str, Any]:
    return {"type": "list", "sources": list(sources), "name": "a list"}


def test_a_list_has_the_images_of_all_its_sources(world: World, tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png")
    shard(tmp_path / "c.tar", "x/1.png")
    source = of_list(folder(tmp_path / "a"), folder(tmp_path / "b"), archive(tmp_path / "c.tar"))
    ids = [item.id for item, _ in world.items(source)]
    top = str(tmp_path)
    assert ids == [f"{top}/a/1.png", f"{top}/b/1.png", f"{top}/c.tar#x/1.png"]


@pytest.mark.parametrize(
    "pattern", ["{00..11}.tar", "*.tar", "**/*.tar", "{0*,1[01]}.tar", "[01]?.tar"]
)
def test_every_cursor_of_shards_resumes_exactly(world: World, tmp_path: Path, pattern: str) -> None:
    for number in range(12):
        shard(tmp_path / "s" / f"{number:02}.tar", "a/1.png", "a/2.png", "b/3.png", "b/notes.md")
    source = archive(tmp_path / "s" / pattern, label_from_folder=True)
    all_ = world.items(source)
    assert len({item.id for item, _ in all_}) == len(all_) == 36
    assert {item.label for item, _ in all_} == {"a", "b"}
    for number, (_, cursor) in enumerate(all_):
        assert world.items(source, cursor) == all_[number + 1 :], cursor


def test_a_missing_and_a_damaged_shard_cost_their_own_images(world: World, tmp_path: Path) -> None:
    for name in ("000", "001", "003"):
        shard(tmp_path / f"{name}.tar", "1.png", "2.png")
    damaged = tmp_path / "001.tar"
    damaged.write_bytes(damaged.read_bytes()[:700])
    all_ = world.items(archive(tmp_path / "{000..003}.tar"))
    problems = {item.id: item.problem for item, _ in all_ if item.problem}
    top = str(tmp_path)
    assert f"{top}/002.tar cannot be read" in str(problems[f"{top}/002.tar"])
    assert f"{top}/001.tar is damaged" in str(problems[f"{top}/001.tar"])
    good = [item.id for item, _ in all_ if not item.problem]
    assert [f"{top}/00{n}.tar#{i}.png" in good for n in (0, 3) for i in (1, 2)] == [True] * 4
    for number, (_, cursor) in enumerate(all_):
        assert world.items(archive(tmp_path / "{000..003}.tar"), cursor) == all_[number + 1 :]


def test_a_file_whose_name_is_a_pattern_is_that_file(world: World, tmp_path: Path) -> None:
    for name in ("x{1,2}.tar", "x{1}.tar", "y[1].tar", "y1.tar", "z*.tar", "za.tar"):
        shard(tmp_path / name, "1.png")
    for name in ("x{1,2}.tar", "x{1}.tar", "y[1].tar", "z*.tar"):
        ids = [item.id for item, _ in world.items(archive(tmp_path / name))]
        assert ids == [f"{tmp_path}/{name}#1.png"]
    picture(tmp_path / "d[1]" / "a[2].png")
    for source in (tmp_path / "d[1]", tmp_path / "d[1]" / "a[2].png", tmp_path / "d[1]" / "*.png"):
        (item, _), *others = world.items(folder(source))
        assert (item.id, others) == (f"{tmp_path}/d[1]/a[2].png", [])


def test_folders_and_images_by_pattern(world: World, tmp_path: Path) -> None:
    for name in ("2023-a/1.png", "2024-a/1.png", "2024-b/deep/2.png", "2024-b/.hidden/3.png"):
        picture(tmp_path / name)
    (tmp_path / "2024-b" / "notes.txt").write_text("x")

    def ids(pattern: str, **more: Any) -> list[str]:
        listed = world.items(folder(tmp_path / pattern, **more))
        return [item.id.removeprefix(f"{tmp_path}/") for item, _ in listed]

    assert ids("2024-*") == ["2024-a/1.png", "2024-b/deep/2.png"]
    assert ids("**/*.png") == ["2023-a/1.png", "2024-a/1.png", "2024-b/deep/2.png"]
    assert ids("2024-{a,b}/*") == ["2024-a/1.png", "2024-b/deep/2.png"]
    source = folder(tmp_path / "**/*.png", label_from_folder=True)
    assert [item.label for item, _ in world.items(source)] == ["2023-a", "2024-a", "deep"]
    every = open_source(folder(tmp_path / "2024-b" / "*"), world.storage, "j")
    assert len(list(every.stream(""))) == 1
    assert every.notes.take() == {".txt": 1}


def test_a_single_image_is_a_source(world: World, tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "x.png").mkdir()
    ((item, _),) = world.items(folder(tmp_path / "a" / "1.png", label_from_folder=True))
    assert (item.id, item.label, item.problem) == (f"{tmp_path}/a/1.png", "a", None)
    assert world.items(folder(tmp_path / "a" / "x.png")) == []


def test_a_pattern_that_matches_nothing_says_so(world: World, tmp_path: Path) -> None:
    for source in (archive(tmp_path / "*.tar"), folder(tmp_path / "no" / "**" / "x?")):
        with pytest.raises(SourceError, match=r"no .*file matches .*(tar|x)"):
            world.items(source)
    shard(tmp_path / "a" / "1.tar", "1.png")
    all_ = world.items(archive(tmp_path / "{a,b}" / "*.tar"))
    assert [item.problem for item, _ in all_] == [None, f"no file matches {tmp_path}/b/*.tar"]
    assert world.items(archive(tmp_path / "{a,b}" / "*.tar"), all_[-1][1]) == []


def test_no_match_leads_out_of_the_roots_or_to_the_services_data(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    shard(inside / "1.tar", "1.png")
    shard(outside / "2.tar", "2.png")
    shard(inside / "blobs" / "3.tar", "3.png")
    os.symlink(outside, inside / "folder")
    os.symlink(outside / "2.tar", inside / "2.tar")
    world = World(tmp_path, source_roots=(inside,), blobs=str(inside / "blobs"))
    world.storage = Storage(world.storage.settings, Blobs(str(inside / "blobs")), Fetcher(Fetch()))
    for pattern in ("**/*.tar", "*.tar", "{1,2}.tar", "*/*.tar", "folder/*.tar"):
        try:
            listed = world.items(archive(inside / pattern))
        except SourceError:
            continue
        good = {item.id for item, _ in listed if not item.problem}
        assert good <= {f"{inside}/1.tar#1.png"}


def test_a_pattern_looks_into_folders_however_deep(world: World, tmp_path: Path) -> None:
    depth = 300
    folders = [os.open(tmp_path, os.O_RDONLY)]
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=folders[-1])
            folders.append(os.open("d", os.O_RDONLY, dir_fd=folders[-1]))
            os.close(folders.pop(-2))
        file = os.open("1.png", os.O_WRONLY | os.O_CREAT, dir_fd=folders[-1])
        os.close(file)
        with few_descriptors():
            ((item, cursor),) = world.items(folder(tmp_path / "**" / "*.png"))
            assert world.items(folder(tmp_path / "**" / "*.png"), cursor) == []
        assert item.id == f"{tmp_path}/{'d/' * depth}1.png"
    finally:
        os.close(folders[-1])
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # shutil.rmtree is recursive


@contextmanager
def few_descriptors() -> Iterator[None]:
    """A limit of open files that is reached when each folder above stays open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_copies_of_two_shards_are_two(world: World, tmp_path: Path) -> None:
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as tar:
            info, data = tarfile.TarInfo("1.png"), png(ord(name))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    reads = [item.read for item, _ in world.items(archive(tmp_path / "*.tar.gz"))]
    assert [world.storage.read(read, 9_999) for read in reads] == [png(97), png(98)]


def test_a_job_of_several_sources(service: MemoryService, tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 10)
    picture(tmp_path / "b" / "1.png", 20)
    (tmp_path / "b" / "x.mov").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as zipped:
        zipped.writestr("cats/1.png", png(30))
    listed = [tmp_path / "a", tmp_path / "b", tmp_path / "c.zip", tmp_path / "missing"]
    with service.client() as client:
        job = client.index("several", listed, label_from_folder=True, wait=True)
        assert (job.state, job.done, job.failed, job.total) == ("partial", 3, 1, 4)
        assert job.left_out == {".mov": 1}
        assert job.source == ", ".join(map(str, listed))
        (failure,) = client.failures(job).failures
        assert failure.id == str(tmp_path / "missing")
        assert client.image("several", f"{tmp_path}/c.zip#cats/1.png").label == "cats"
        job = client.index("several", tmp_path / "?", wait=True, label_from_folder=True)
        assert (job.state, job.skipped) == ("succeeded", 2)
        job = client.index("several", tmp_path / "{a,b}" / "*.png", wait=True)
        assert (job.done, job.replaced) == (2, 2)  # without labels


def test_a_pattern_outside_the_roots_is_refused_at_once(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    picture(inside / "1.png")
    with MemoryService(source_roots=[inside]) as service, service.client() as client:
        with pytest.raises(ProblemError, match=r"'\*' is not an absolute path"):
            client.index("c", {"type": "folder", "path": "*"})
        for path in ("/etc/*", f"{tmp_path}/{{in,out}}/*", f"{inside}/../*"):
            with pytest.raises(ProblemError, match="outside the folders") as refused:
                client.index("c", path)
            assert refused.value.status == 403
        with pytest.raises(ProblemError, match="outside the folders"):
            client.index("c", [str(inside), "/etc"])
        assert client.index("c", inside / "*", wait=True).done == 1
