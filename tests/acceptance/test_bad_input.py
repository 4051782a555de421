"""Bad input of every kind: good images are indexed, bad ones fail with a reason."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from PIL import Image

from support.images import png_header
from support.in_process import InProcess
from support.stack import Up, document, finished


def jpeg(path: Path, size: tuple[int, int] = (60, 40), mode: str = "RGB", **how: Any) -> None:
    Image.effect_noise(size, 90).convert(mode).save(path, "JPEG", **how)


GOOD = {
    "plain.jpg",
    "CAPITALS.JPG",
    "cmyk.jpg",
    "palette.png",
    "sixteen.png",
    "alpha.png",
    "animated.gif",
    "turned.jpg",
    "one-pixel.png",
    "strip.png",
    "new\nline.jpg",
    "日本 🎉 é.jpg",
    "quote\"and'\\.jpg",
    "deep/er/down.webp",
    "link-inside.jpg",
}
BAD = {
    "truncated.jpg": "cut short",
    "text.jpg": "no image",
    "empty.jpg": "empty",
    "huge.png": "pixels",
    "bomb.png": "pixels",
    "half.png": "cut short",
    "pipe.jpg": "not a regular file",
    "dangling.jpg": "cannot be read",
    "link-outside.jpg": "outside",
    "\\udcff.jpg": "UTF-8",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("roots") / "bad"
    (top / "deep" / "er").mkdir(parents=True)
    put_good(top)
    with TemporaryDirectory() as outside:  # of all roots
        put_bad(top, Path(outside))
        yield top


def put_good(top: Path) -> None:
    for name in (
        "plain.jpg",
        "CAPITALS.JPG",
        "new\nline.jpg",
        "日本 🎉 é.jpg",
        "quote\"and'\\.jpg",
    ):
        jpeg(top / name)
    jpeg(top / "cmyk.jpg", mode="CMYK")
    noise = Image.effect_noise((50, 50), 90)
    noise.convert("P").save(top / "palette.png", transparency=3)
    Image.new("I;16", (40, 40), 40_000).save(top / "sixteen.png")
    noise.convert("RGBA").save(top / "alpha.png")
    noise.save(top / "animated.gif", save_all=True, append_images=[noise.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg(top / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1), "red").save(top / "one-pixel.png")
    Image.new("RGB", (20_000, 1), "red").save(top / "strip.png")
    noise.save(top / "deep" / "er" / "down.webp")
    (top / "link-inside.jpg").symlink_to(top / "plain.jpg")


def put_bad(top: Path, outside: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(whole, "JPEG")
    (top / "truncated.jpg").write_bytes(whole.getvalue()[:3_000])
    (top / "text.jpg").write_text("I am no picture")
    (top / "empty.jpg").write_bytes(b"")
    (top / "huge.png").write_bytes(png_header(50_000, 50_000))
    (top / "bomb.png").write_bytes(png_header(2**31 - 1, 2**31 - 1))
    (top / "half.png").write_bytes(png_header(300, 300))
    os.mkfifo(top / "pipe.jpg")
    (top / "dangling.jpg").symlink_to(top / "nowhere.jpg")
    jpeg(outside / "secret.jpg")
    (top / "link-outside.jpg").symlink_to(outside / "secret.jpg")
    (top / "loop").symlink_to(top)
    (Path(os.fsdecode(os.fsencode(top) + b"/\xff.jpg"))).write_bytes(b"x")
    (top / ".hidden.jpg").write_text("not looked at")
    (top / "notes.txt").write_text("not looked at")


@pytest.fixture(scope="module")
def rooted(folder: Path) -> Iterator[InProcess]:
    with InProcess(source_roots=(folder.parent,)) as running:
        yield running


def test_the_good_are_in_and_each_bad_one_is_named_with_its_reason(
    rooted: InProcess, folder: Path
) -> None:
    require_good_and_bad(rooted, folder)


def test_the_real_stack_takes_the_good_and_names_the_bad(service: Up, folder: Path) -> None:
    require_good_and_bad(service, folder)


def require_good_and_bad(rooted: InProcess | Up, folder: Path) -> None:
    with rooted.client() as client:
        client.create_collection("mixed")
        job = finished(client, client.index("mixed", folder).id)
        failed = client.failures(job.id)
        assert {f.id.removeprefix(f"{folder}/") for f in failed.failures} == set(BAD)
        for failure in failed.failures:
            expected = BAD[failure.id.removeprefix(f"{folder}/")]
            assert expected in failure.reason, failure
        assert (job.state, job.done, job.failed) == ("partial", len(GOOD), len(BAD))
        assert job.total == len(GOOD) + len(BAD)
        matches = client.search("mixed", text="noise", top_k=100).matches
        assert {match.id.removeprefix(f"{folder}/") for match in matches} == GOOD


def test_the_command_line_says_so_with_its_exit_code(rooted: InProcess, folder: Path) -> None:
    done = rooted.cli("index", str(folder), "--collection", "by-cli", "--json")
    assert done.returncode == 3
    assert document(done)["state"] == "partial"
    assert "failed" in done.stderr


def test_a_folder_outside_the_roots_is_refused(rooted: InProcess, folder: Path) -> None:
    for path in ("/etc", f"{folder}/../../..", "relative", f"{folder.parent}-not"):
        require_refused(rooted, path)


def test_the_real_stack_refuses_a_folder_outside_its_roots(service: Up) -> None:
    for path in ("/etc", "relative"):
        require_refused(service, path)


def require_refused(rooted: InProcess | Up, path: str) -> None:
    with rooted.http() as http:
        http.put("/v1/collections/mixed")
        source = {"source": {"type": "folder", "path": path}}
        refused = http.post("/v1/collections/mixed/jobs", json=source)
        assert refused.status_code == 403, path
        assert refused.headers["content-type"] == "application/problem+json"


def test_an_empty_and_a_missing_folder_fail_the_job_and_say_why(
    rooted: InProcess, folder: Path
) -> None:
    (folder.parent / "empty").mkdir(exist_ok=True)
    for name, words in (("empty", "no images"), ("missing", "No such file")):
        done = rooted.cli("index", str(folder.parent / name), "--collection", "mixed", "--json")
        assert done.returncode == 1
        assert words in document(done)["error"]
