"""`clipfleet demo` and `make demo`: tables, names, the address, and a second run."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from clipfleet import Client, SearchResult
from clipfleet.embedded import commands
from support import services, stack
from support.documents import START

SAMPLES = Path(str(files("clipfleet"))) / "samples"
NAMES = {(path.stem, path.parent.name) for path in SAMPLES.rglob("*.png")}
WORDS = ("a guitar", "a strawberry", "a house", "a bicycle", "an umbrella")
GUITAR = SAMPLES / "music" / "guitar.png"
ROW = re.compile(r"^\d+ +(?P<score>-?[01]\.\d{3}) +(?P<image>\S+) +(?P<label>\S+) *$")


@dataclass
class Demo:
    """A running demo.

    Attributes:
        printed: Its output until it was up.
        url: Address of the service.
    """

    printed: str
    url: str

    def tables(self) -> list[list[re.Match[str]]]:
        """Return the rows of each table in the order of the output."""
        tables: list[list[re.Match[str]]] = []
        for line in self.printed.splitlines():
            if line.startswith("#  score  image"):
                tables.append([])
            elif row := ROW.match(line):
                tables[-1].append(row)
        return tables


def make_demo(data: Path, port: int) -> list[str]:
    """Return the command that the README shows."""
    root = Path(__file__).parents[2]
    return ["make", "-C", str(root), "demo", f"DATA={data}", f"PORT={port}"]


def clipfleet_demo(data: Path, port: int) -> list[str]:
    return [commands.script("clipfleet"), "demo", "--data", str(data), "--port", str(port)]


@contextmanager
def demo(command: Callable[[Path, int], list[str]], data: Path) -> Iterator[Demo]:
    """Run a demo on a free port until Ctrl-C ends it; its files stay in `data`."""
    port = commands.free_port()
    url, out = f"http://127.0.0.1:{port}", data.with_suffix(f".{port}.out")
    with out.open("wb") as printed:
        process = subprocess.Popen(
            command(data, port),
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**stack.CLEAN, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    try:
        services.eventually(
            lambda: process.poll() is not None or f"is up at {url}" in out.read_text(),
            4 * stack.START_S,
            "the demo's last line",
        )
        assert process.poll() is None, out.read_text()
        yield Demo(out.read_text(), url)
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, which asks all of a line
        process.wait(60)
    assert "data is kept" in out.read_text()


def fails(*args: str) -> str:
    """Return the only line of the error."""
    done = stack.cli("demo", *args)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    return line


@dataclass
class First:
    """A first demo, which has ended.

    Attributes:
        nearest: Names of the images nearest to each text and to an image, nearest first.
    """

    demo: Demo
    nearest: dict[str | Path, list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "data"


@pytest.fixture(scope="module")
def first(data: Path) -> First:
    with demo(make_demo, data) as running, Client(running.url) as client:
        nearest_ids: dict[str | Path, list[str]] = {
            words: nearest(client.search("demo", text=words, top_k=3)) for words in WORDS
        }
        return First(running, nearest_ids | {GUITAR: nearest(client.search("demo", image=GUITAR))})


def nearest(result: SearchResult) -> list[str]:
    return [Path(match.id).stem for match in result.matches]


def test_it_indexes_the_samples_searches_them_and_stays_up(first: First) -> None:
    assert f"{len(NAMES)} images indexed" in first.demo.printed
    words, more_words, by_image = first.demo.tables()
    for table in (words, more_words, by_image):
        assert len(table) == 5
        assert {(row["image"], row["label"]) for row in table} <= NAMES
        scores = [float(row["score"]) for row in table]
        assert scores == sorted(scores, reverse=True)
    assert {row["label"] for row in words} == {"music"}
    assert float(by_image[0]["score"]) == pytest.approx(1, abs=0.01)
    assert by_image[0]["image"] == "house"
    assert "searched by the image house" in first.demo.printed
    assert first.nearest["a strawberry"][0] == "strawberry"
    shown = Demo(START.read_text(), "").tables()
    assert [[row["image"] for row in table] for table in shown] == [
        [row["image"] for row in table] for table in first.demo.tables()
    ]


def test_samples_answer_to_words_and_to_images(first: First) -> None:
    for words in WORDS:
        assert words.split()[1] in first.nearest[words], words
    assert first.nearest[GUITAR][0] == "guitar"


@pytest.mark.usefixtures("first")
def test_the_second_time_everything_is_in_already(data: Path) -> None:
    with demo(clipfleet_demo, data) as again:
        assert f"all {len(NAMES)} images were indexed before" in again.printed
        assert "images indexed" not in again.printed
        assert len(again.tables()) == 3
        with httpx.Client(base_url=again.url, trust_env=False) as http:
            assert http.get("/v1/collections/demo").json()["count"] == len(NAMES)


def test_a_folder_without_images_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("buy milk")
    line = fails("--data", str(tmp_path / "data"), "--images", str(tmp_path / "notes"))
    assert str(tmp_path / "notes") in line
    assert "--images" in line
    assert not (tmp_path / "data").exists()


def test_a_folder_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    line = fails("--data", str(tmp_path / "data"), "--images", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in line
    assert "--images" in line


def test_a_port_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((commands.LOOPBACK, 0))
        taken.listen()
        line = fails("--data", str(tmp_path / "data"), "--port", str(taken.getsockname()[1]))
    assert "--port" in line


def test_images_that_all_cannot_be_read_end_it_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.jpg").write_text("no image")
    port, data = str(commands.free_port()), str(tmp_path / "data")
    options = ["--data", data, "--port", port, "--images", str(tmp_path / "pictures")]
    done = stack.cli("demo", *options, CLIPFLEET_MODEL=stack.HASH_MODEL)
    assert done.returncode == 1
    *_, why, what_to_do, stopping = done.stderr.splitlines()
    assert "broken.jpg" in why
    assert "stopping" in stopping
    assert "--images" in what_to_do
