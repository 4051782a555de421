"""Every command of docs/start.md is executed, those of the parts in test_parts.py; a block that no
test knows fails. The README shows some of them."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.embedded import commands
from support import services, stack
from support.documents import README, START, blocks_in, lines, put_for, shell
from support.stack import HASH_MODEL, Up, finished


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, flickr: list[Path]) -> Path:
    """A user's home: pictures by occasion, and a photo of a cat."""
    folder = tmp_path_factory.mktemp("home")
    stack.photos(folder / "Pictures" / "holiday", flickr[:6], 6)
    stack.photos(folder / "Pictures" / "rome", flickr[6:12], 6)
    (folder / "cat.jpg").write_bytes(flickr[20].read_bytes())
    (folder / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
    return folder


@pytest.fixture(scope="module")
def at_home(home: Path) -> Iterator[Up]:
    """`clipfleet up`, as docs/start.md has it; the environment names what it may not take there."""
    (up,) = blocks_in(START)["On this machine", "sh"][:1]
    port = commands.free_port()
    own = {"CLIPFLEET_PORT": str(port), "CLIPFLEET_MODEL": HASH_MODEL, "HOME": str(home)}
    process = subprocess.Popen(
        [commands.script("clipfleet"), *lines(up)[0].split()[1:]],
        cwd=home,
        env={**stack.CLEAN, **own},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    running = Up(process, home / "clipfleet-data", f"http://127.0.0.1:{port}")
    try:
        services.eventually(running.ready, stack.START_S, "clipfleet up")
        yield running
    finally:
        stack.stop(process)


def test_every_block_is_run_by_a_test() -> None:
    assert {key: len(blocks) for key, blocks in blocks_in(START).items()} == {
        ("On this machine", "sh"): 3,
        ("From Python", "python"): 1,
        ("Over HTTP", "sh"): 1,
        ("The parts, one by one", "sh"): 2,
    }


def test_the_readme_shows_what_is_run_here() -> None:
    shown, start = blocks_in(README), blocks_in(START)
    assert set(shown) == {
        ("clipfleet", "sh"),
        ("Use it", "sh"),
        ("Use it", "python"),
        ("Install", "sh"),
    }
    run = [line for block in start["On this machine", "sh"] for line in lines(block)]
    assert set(lines(shown["Use it", "sh"][0])) <= set(run)
    assert shown["Use it", "python"] == start["From Python", "python"]


def test_the_first_two_commands_exist() -> None:
    """`make demo` is run in test_demo.py, and `make test` runs this."""
    demo, test = lines(blocks_in(README)["clipfleet", "sh"][0])
    assert demo.split()[:2] == ["make", "demo"]
    assert test.split()[:2] == ["make", "test"]


def test_the_readme_lists_every_extra() -> None:
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| (`[a-z0-9`, -]+`) \|", README.read_text(), re.MULTILINE)
    listed = {name.strip("` ") for row in rows for name in row.split(",")}
    assert listed == project["optional-dependencies"].keys() - {"parts"}


def test_the_readme_can_be_read_at_once() -> None:
    text = README.read_text().splitlines()
    assert len(text) <= 120
    assert "<img" in "".join(text[:10])


def test_on_this_machine(at_home: Up, home: Path) -> None:
    _, use, evaluate = blocks_in(START)["On this machine", "sh"]
    outputs = [shell(line, home, CLIPFLEET_URL=at_home.url) for line in lines(use)]
    indexed, _, by_cat, mixed, churches, jobs = outputs
    assert "succeeded" in indexed
    assert len(by_cat.splitlines()) == 6
    assert len(mixed.splitlines()) == 11
    labels = {match["label"] for match in json.loads(churches)["matches"]}
    assert labels == {"holiday", "rome"}
    assert "succeeded" in jobs
    assert "12" in shell(evaluate, home)


def test_from_python(at_home: Up, home: Path) -> None:
    (program,) = blocks_in(START)["From Python", "python"]
    program = put_for(program, {"/data/photos": str(home / "Pictures")})
    (home / "program.py").write_text(program)
    output = shell(f"{sys.executable} program.py", home, CLIPFLEET_URL=at_home.url)
    assert len(output.splitlines()) == 5


def test_over_http(at_home: Up, home: Path) -> None:
    (block,) = blocks_in(START)["Over HTTP", "sh"]
    real = {"/data/photos": str(home / "Pictures"), "localhost:8000": at_home.url}
    put, job, jobs, search, embed = lines(put_for(block, real))
    assert json.loads(shell(put, home))["name"] == "photos"
    started = json.loads(shell(job, home))["id"]
    with at_home.client() as client:
        finished(client, started)
    assert started in {listed["id"] for listed in json.loads(shell(jobs, home))["jobs"]}
    assert len(json.loads(shell(search, home))["matches"]) == 5
    assert len(json.loads(shell(embed, home))["embeddings"][0]) == 32


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    here = [target for target in targets if not target.startswith("http")]
    assert here
    assert not [target for target in here if not (README.parent / target).exists()]
