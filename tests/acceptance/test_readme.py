"""Every command of the README is executed; a block that no test knows fails."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from clipfleet import Client
from clipfleet.embedded import commands
from support import services, stack
from support.documents import BIN, lines, put_for, shell
from support.stack import Up, finished

README = Path(__file__).parents[2] / "README.md"


def blocks() -> dict[tuple[str, str], list[str]]:
    """By heading and language, the fenced blocks below it that can be run."""
    found: dict[tuple[str, str], list[str]] = {}
    for section in re.split(r"^#+ ", README.read_text(), flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        for language, body in re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S):
            if language != "text":
                found.setdefault((heading, language), []).append(body)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, flickr: list[Path]) -> Path:
    """A user's home: pictures by occasion, and a photo of a cat."""
    made = tmp_path_factory.mktemp("home")
    stack.photos(made / "Pictures" / "holiday", flickr[:6], 6)
    stack.photos(made / "Pictures" / "rome", flickr[6:12], 6)
    (made / "cat.jpg").write_bytes(flickr[20].read_bytes())
    (made / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
    return made


@pytest.fixture(scope="module")
def at_home(home: Path) -> Iterator[Up]:
    """`clipfleet up`, as the README says it; the environment names what it may not take there."""
    (up,) = blocks()["On this machine", "sh"][:1]
    port = commands.free_port()
    own = {"CLIPFLEET_PORT": str(port), "CLIPFLEET_MODEL": "clipfleet-mini", "HOME": str(home)}
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


def test_every_block_is_run_by_a_test_of_this_file() -> None:
    assert {key: len(found) for key, found in blocks().items()} == {
        ("clipfleet", "sh"): 1,
        ("On this machine", "sh"): 3,
        ("From Python", "python"): 1,
        ("Over HTTP", "sh"): 1,
        ("The parts, one by one", "sh"): 2,
    }


def test_the_first_two_commands_exist() -> None:
    """`make demo` is run in test_demo.py, and `make test` runs this."""
    demo, test = lines(blocks()["clipfleet", "sh"][0])
    assert demo.split()[:2] == ["make", "demo"]
    assert test.split()[:2] == ["make", "test"]


def test_on_this_machine(at_home: Up, home: Path) -> None:
    _, use, evaluate = blocks()["On this machine", "sh"]
    said = [shell(line, home, CLIPFLEET_URL=at_home.url) for line in lines(use)]
    indexed, _, by_cat, mixed, churches, jobs = said
    assert "succeeded" in indexed
    assert len(by_cat.splitlines()) == 6
    assert len(mixed.splitlines()) == 11
    labels = {match["label"] for match in json.loads(churches)["matches"]}
    assert labels == {"holiday", "rome"}
    assert "succeeded" in jobs
    assert "12" in shell(evaluate, home)


def test_from_python(at_home: Up, home: Path) -> None:
    (program,) = blocks()["From Python", "python"]
    program = put_for(program, {"/data/photos": str(home / "Pictures")})
    (home / "program.py").write_text(program)
    said = shell(f"{sys.executable} program.py", home, CLIPFLEET_URL=at_home.url)
    assert len(said.splitlines()) == 5


def test_over_http(at_home: Up, home: Path) -> None:
    (block,) = blocks()["Over HTTP", "sh"]
    real = {"/data/photos": str(home / "Pictures"), "localhost:8000": at_home.url}
    put, job, jobs, search, embed = lines(put_for(block, real))
    assert json.loads(shell(put, home))["name"] == "photos"
    started = json.loads(shell(job, home))["id"]
    with at_home.client() as client:
        finished(client, started)
    assert started in {one["id"] for one in json.loads(shell(jobs, home))["jobs"]}
    assert len(json.loads(shell(search, home))["matches"]) == 5
    assert len(json.loads(shell(embed, home))["embeddings"][0]) == 384


def test_the_parts_one_by_one(home: Path, tmp_path: Path) -> None:
    exports, programs = blocks()["The parts, one by one", "sh"]
    port = commands.free_port()
    with ExitStack() as running:
        real = {
            "redis://localhost:6379/0": running.enter_context(services.valkey(tmp_path / "v")),
            "http://localhost:19530": running.enter_context(services.milvus_lite(tmp_path / "m")),
            "/mnt/clipfleet": str(tmp_path / "blobs"),
            '"/data"': f'"{home}"',
            "openai/clip-vit-base-patch32": "clipfleet-mini",
        }
        exports = put_for(exports, real)
        env = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        for number, line in enumerate(lines(put_for(programs, {"8000": str(port)}))):
            command = ["bash", "-c", f"{exports}\nexec {line}"]
            running.enter_context(services.process(command, tmp_path / f"{number}.log", **env))
        client = running.enter_context(Client(f"http://127.0.0.1:{port}"))
        services.eventually(
            lambda: client.create_collection("images"), stack.START_S, "gateway and workers"
        )
        job = client.index(home / "Pictures", wait=True)
        assert (job.state, job.done) == ("succeeded", 12)
        assert len(client.search(text="a dog", top_k=3).matches) == 3
        first = client.search(text="a dog", top_k=1).matches[0]
        assert client.thumbnail(first.id).startswith(b"\xff\xd8")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    here = [target for target in targets if not target.startswith("http")]
    assert here
    assert not [target for target in here if not (README.parent / target).exists()]
