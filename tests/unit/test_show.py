"""What the command line prints, in a terminal of any width."""

from pathlib import Path

import pytest
from PIL import Image

from clipfleet.cli import show
from clipfleet.common.http.schemas import MatchOut, SearchOut
from clipfleet.common.ledger import Job
from clipfleet.common.ledger.shown import job_out
from clipfleet.testing import MemoryService
from support.in_process import run_cli
from support.ledgers import a_job

LONG = "/home/somebody/Pictures/a folder with a long name/" + "x" * 200 + ".jpg"
RESULT = SearchOut(
    matches=[MatchOut(id=LONG, score=0.5, uri=LONG, label="a folder", metadata={})], took_ms=1
)


def test_an_id_is_shown_whole_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show.matches(RESULT)
    _, line = capsys.readouterr().out.splitlines()
    assert LONG in line


def test_a_picture_is_shown_by_the_name_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    show.pictures(RESULT, lambda image_id: image_id[-5:] + "[b]\n")
    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["1", "0.500", "x.jpg[b]\\n", "a", "folder"]


def test_a_job_says_what_it_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    notes = {".heic": 10, ".mov": 2, ".": 1, "numbers were changed": 3}
    show.job(job_out(Job(new=a_job(), state="succeeded", created_at=0.0, notes=notes)))
    lines = capsys.readouterr().out.splitlines()
    assert "left out: 13 files (10 .heic, 2 .mov, 1 without suffix)" in lines
    assert "note: numbers were changed (3)" in lines


def test_a_job_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    new = a_job().model_copy(update={"source": {"type": "folder", "path": "/photos/[2024]"}})
    job = Job(new, "succeeded", 100.0, started_at=160.0, finished_at=165.5, total=11, done=11)
    show.job(job_out(job))
    lines = capsys.readouterr().out.splitlines()
    assert "source: /photos/[2024]" in lines
    assert any(line.startswith("started: 1970-01-0") for line in lines)
    assert "took: 5.5 s" in lines
    assert "rate: 2.0 images/s" in lines


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"type": "manifest", "uri": "/a?b#c.csv"}, "/a?b#c.csv"),
        (
            {"type": "archive", "uri": "https://me:secret@a.org/x.tar?token=1#2"},
            "https://a.org/x.tar",
        ),
        ({"type": "bucket", "uri": "s3://bucket/prefix"}, "s3://bucket/prefix"),
        ({"type": "urls", "digest": "0"}, "a list of URLs"),
        ({"type": "upload"}, "uploaded files"),
        ({"type": "retry", "job": "j1"}, "the failures of j1"),
        ({"type": "folder", "path": "/" + "x" * 4_000}, "/" + "x" * 999),
    ],
)
def test_a_source_is_shown_without_secrets(source: dict[str, str], shown: str) -> None:
    new = a_job().model_copy(update={"source": source})
    assert job_out(Job(new, "queued", 0.0)).source == shown


def test_the_cancel_of_a_job_that_has_ended_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with MemoryService(dim=4) as service, service.client() as client:
        job = client.index("c", tmp_path, wait=True)
        done = run_cli(service.url, "jobs", "cancel", job.id)
    assert done.returncode == 0
    assert "The job had ended before (succeeded); nothing was cancelled." in done.stderr


def test_colons_in_a_name_are_not_turned_into_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    match = MatchOut(id="a:x:.jpg", score=0.5, uri="a:x:.jpg", label=":dog:", metadata={})
    show.matches(SearchOut(matches=[match], took_ms=1))
    show.err.print("clipfleet: hash:x: is no model", markup=False)
    captured = capsys.readouterr()
    assert "a:x:.jpg" in captured.out
    assert ":dog:" in captured.out
    assert "hash:x: is no model" in captured.err
