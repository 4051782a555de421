"""The command line with Ctrl-C, with TAB completion and with several files."""

import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from clipfleet.embedded import commands
from support.chaos import stopped
from support.stack import CLEAN, Up, cli, document, photos

PHOTOS = 12


def test_ctrl_c_leaves_the_job_at_work_and_says_how_to_follow_it(
    service: Up, tmp_path: Path, flickr: list[Path]
) -> None:
    photos(tmp_path, flickr, PHOTOS)
    command = [commands.script("clipfleet"), "index", str(tmp_path), "--collection", "followed"]
    with (
        stopped(service.part("worker-ingest-1")),  # so that there is a job to leave
        subprocess.Popen(
            [*command, "--json"],
            env={**CLEAN, "CLIPFLEET_URL": service.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr
        assert process.stderr.readline().strip()  # it follows the job
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    seen = document(subprocess.CompletedProcess([], 0, out, ""))
    assert seen["state"] in ("queued", "running")
    program, *follow = shlex.split(err.partition("Follow it with: ")[2])
    assert (program, follow) == ("clipfleet", ["jobs", "show", seen["id"], "--follow"])

    followed = service.cli(*follow, "--json", timeout_s=300)
    assert followed.returncode == 0, followed.stderr
    ended = document(followed)
    assert (ended["id"], ended["state"], ended["done"]) == (seen["id"], "succeeded", PHOTOS)
    assert f"{seen['id']}: succeeded, {PHOTOS:,} of {PHOTOS:,} images" in followed.stderr


def test_several_files_go_up_together(service: Up, tmp_path: Path, flickr: list[Path]) -> None:
    files = photos(tmp_path, flickr, 3)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    arguments = [str(file) for file in (*files, tmp_path / "bad.jpg")]
    done = service.cli("index", *arguments, "--collection", "several", "--json")
    assert done.returncode == 3, done.stderr
    job = document(done)
    assert (job["total"], job["done"], job["failed"]) == (4, 3, 1)
    assert f"failed {tmp_path / 'bad.jpg'}" in done.stderr
    searched = service.cli("search", "--image", str(files[1]), "--collection", "several", "--json")
    assert document(searched)["matches"][0]["id"] == str(files[1])


def test_two_files_of_one_name_in_two_folders_are_two_images(
    service: Up, tmp_path: Path, flickr: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, photo in (("holiday", flickr[0]), ("rome", flickr[1])):
        (tmp_path / folder).mkdir()
        shutil.copy(photo, tmp_path / folder / "IMG_0001.jpg")
    monkeypatch.chdir(tmp_path)
    for path in ("holiday/IMG_0001.jpg", "./rome/IMG_0001.jpg"):
        done = service.cli("index", path, "--collection", "same-name")
        assert done.returncode == 0, done.stderr
    both = ["holiday/IMG_0001.jpg", "rome/IMG_0001.jpg"]
    done = service.cli("index", *both, "--id", "a", "--id", "b", "--collection", "same-name")
    assert done.returncode == 0, done.stderr
    ids = service.cli("collections", "ids", "same-name").stdout.split()
    assert sorted(ids) == ["a", "b", *both]
    for options in (["--id", "a"], ["--id", "a", "--id", "a"]):
        done = service.cli("index", *both, *options, "--collection", "same-name")
        assert done.returncode == 2


def test_folders_and_files_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    image = str(tmp_path / "a.jpg")
    for arguments, message in (
        ([str(tmp_path), image], "--upload sends files and folders"),
        ([str(tmp_path), "--upload", "--id", "x"], "--id is for files"),
        ([str(tmp_path / "no"), "--upload"], "there is no file or folder"),
        (["https://h.org/a.jpg", "--upload"], "is a URL"),
        ([str(tmp_path / "{1,2}.csv"), "--label-from-folder"], "--label-from-folder: a source of"),
        ([image, str(tmp_path / "b.jpg")], "there is no file"),
    ):
        done = cli("index", *arguments, COLUMNS="200")
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr.replace(" │\n│ ", " ")


def completed(words: str, **env: str) -> list[str]:
    """Return bash's completions of these words."""
    done = subprocess.run(
        [commands.script("clipfleet")],
        env={
            **CLEAN,
            "_CLIPFLEET_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            **env,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_tab_offers_commands_and_options() -> None:
    assert {"up", "index", "search", "jobs", "collections"} <= set(completed("clipfleet "))
    assert completed("clipfleet jobs sh") == ["show"]
    assert "--follow" in completed("clipfleet jobs show --fo")


def test_tab_offers_what_the_service_has_and_nothing_without_one(service: Up) -> None:
    words = "clipfleet search x --collection comp"
    with service.tidied(), service.client() as client:
        client.create_collection("completed", model="none", dim=2)
        assert completed(words, CLIPFLEET_URL=service.url) == ["completed"]
    assert completed(words, CLIPFLEET_URL="http://127.0.0.1:1") == []
    some = service.cli("jobs", "list", "--json")
    ids = {job["id"] for job in document(some)["jobs"]}
    assert set(completed("clipfleet jobs show ", CLIPFLEET_URL=service.url)) == ids


def test_completion_is_shown_for_the_shell_it_runs_in(tmp_path: Path) -> None:
    done = in_bash("--show-completion", tmp_path)
    assert "_CLIPFLEET_COMPLETE" in done.stdout, done.stderr


def test_completion_is_installed_in_the_home_folder(tmp_path: Path) -> None:
    done = in_bash("--install-completion", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "clipfleet" in (tmp_path / ".bashrc").read_text()


def in_bash(option: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """Run the program under bash: it detects the shell from its parent processes."""
    program = shlex.quote(commands.script("clipfleet"))
    return subprocess.run(
        ["bash", "-c", f"{program} {option}; exit $?"],
        env={**CLEAN, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
