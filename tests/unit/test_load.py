"""benchmarks/load.py, against a service in this process."""

import ast
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.testing import HashEmbedder, MemoryService
from support.prometheus import scrape
from support.services import eventually

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load.py"
DIM, IMAGES = 8, 12


class GatedEmbedder(HashEmbedder):
    """Remembers the texts, and embeds none while `gate` is clear."""

    def __init__(self) -> None:
        super().__init__(DIM)
        self.gate = threading.Event()
        self.gate.set()
        self.texts: list[str] = []

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        assert self.gate.wait(60)
        self.texts += texts
        return super().embed_texts(texts)


@pytest.fixture(scope="module")
def embedder() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture(scope="module")
def service(embedder: GatedEmbedder) -> Iterator[MemoryService]:
    with MemoryService(embedder=embedder) as running, running.client() as client:
        client.create_collection("full")
        client.create_collection("empty")
        client.upsert("full", [{"id": f"{n}", "values": [1.0] * DIM} for n in range(IMAGES)])
        yield running


class Run:
    """A run of the script."""

    def __init__(self, service: MemoryService, folder: Path, *words: str) -> None:
        self._report = folder / "load.json"
        command = [sys.executable, str(SCRIPT), "--url", service.url, "--json", str(self._report)]
        self._child = subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def report(self, code: int = 0) -> dict[str, Any]:
        """The report, at the end with this exit code."""
        self.shown, errors = self._child.communicate(timeout=120)
        assert self._child.returncode == code, errors
        document: dict[str, Any] = json.loads(self._report.read_text())
        return document


def test_clients_that_wait_for_their_answers(
    service: MemoryService, embedder: GatedEmbedder, tmp_path: Path
) -> None:
    embedder.texts.clear()
    options = ("--collection", "full", "--clients", "3", "--seconds", "2", "--warmup", "0.2")
    run = Run(service, tmp_path, *options)
    report = run.report()
    assert (report["loop"], report["clients"]) == ("closed", 3)
    assert report["requests"] == report["answers"] > 0
    assert report["matches"] == 10 * report["answers"]
    assert (report["without_matches"], report["errors"]) == (0, {})
    assert report["answers_per_s"] > 0
    latency = report["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert f"{report['answers']} answers with matches" in run.shown
    assert len(embedder.texts) > report["answers"], "those of the warm-up were not sent"
    assert len(set(embedder.texts)) == len(embedder.texts)


def test_queries_at_fixed_times_do_not_wait_for_answers(
    service: MemoryService, embedder: GatedEmbedder, tmp_path: Path
) -> None:
    embedder.gate.clear()
    options = ("--collection", "full", "--rate", "50", "--seconds", "2", "--warmup", "0.5")
    run = Run(service, tmp_path, *options)
    try:
        waiting = "clipfleet_queries_waiting"
        eventually(lambda: scrape(service.url).total(waiting) >= 20, 60, "a stall of the service")
    finally:
        embedder.gate.set()
    report = run.report()
    assert (report["loop"], report["rate"]) == ("open", 50)
    assert report["requests"] == report["answers"] == 100
    assert report["latency_ms"]["max"] >= report["sent_late_ms"]["max"]


def test_texts_of_a_file(service: MemoryService, embedder: GatedEmbedder, tmp_path: Path) -> None:
    embedder.texts.clear()
    file = tmp_path / "texts.txt"
    file.write_text("a church\n\n a dog \n")
    options = ("--collection", "full", "--queries", str(file), "--seconds", "0.2", "--warmup", "0")
    assert Run(service, tmp_path, *options).report()["answers"] > 0
    assert set(embedder.texts) == {"a church", "a dog"}


@pytest.mark.parametrize(
    ("collection", "field", "number"), [("empty", "without_matches", 0), ("none", "errors", 404)]
)
def test_answers_that_measure_nothing_fail_the_run(
    service: MemoryService, tmp_path: Path, collection: str, field: str, number: int
) -> None:
    options = ("--collection", collection, "--clients", "1", "--seconds", "0.3", "--warmup", "0")
    report = Run(service, tmp_path, *options).report(code=1)
    assert report["answers"] == 0
    assert report["latency_ms"] == {}
    seen = report[field].get(str(number)) if number else report[field]
    assert seen == report["requests"] > 0


def test_it_needs_httpx_alone() -> None:
    tree = ast.parse(SCRIPT.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in imports
    }
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"httpx"}


@pytest.mark.parametrize("words", [("--clients", "2", "--rate", "5"), ("--rate", "0")])
def test_a_load_that_makes_no_sense_is_refused(words: Sequence[str]) -> None:
    run = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert run.returncode == 2
    assert "--rate" in run.stderr
