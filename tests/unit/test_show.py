"""What the command line prints, in a terminal of any width."""

import pytest

from clipfleet.api.jobs.service import job_out
from clipfleet.cli import show
from clipfleet.common.http.schemas import MatchOut, SearchOut
from clipfleet.common.ledger import Job
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


def test_colons_in_a_name_are_not_turned_into_an_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    match = MatchOut(id="a:x:.jpg", score=0.5, uri="a:x:.jpg", label=":dog:", metadata={})
    show.matches(SearchOut(matches=[match], took_ms=1))
    show.err.print("clipfleet: hash:x: is no model", markup=False)
    captured = capsys.readouterr()
    assert "a:x:.jpg" in captured.out
    assert ":dog:" in captured.out
    assert "hash:x: is no model" in captured.err
