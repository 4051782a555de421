"""The parts one by one, as docs/start.md starts them, on a read-only root.

Their results are compared with a computation in this process.
"""

import base64
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clipfleet import Client, SearchResult
from clipfleet.embedded import commands
from clipfleet.workers.embedding.libraries import transformers
from support import services, stack
from support.containment import contained, hindrance
from support.documents import BIN, START, blocks_in, lines, put_for
from support.stack import finished, photos

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "clipfleet" / "samples" / "animals"
TOP_K = 10
PHOTOS = 60
ROUNDING = 3e-4


@pytest.fixture(scope="module")
def hindered(tmp_path_factory: pytest.TempPathFactory) -> str:
    return hindrance(tmp_path_factory.mktemp("trial"))


@pytest.fixture
def _contained(hindered: str) -> None:
    if hindered:
        pytest.skip(hindered)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the parts may read."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(
    tiny: Path, home: Path, hindered: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A client of the parts; each part runs on a read-only root where that is possible."""
    exports, programs = blocks_in(START)["The parts, one by one", "sh"]
    folder, port = tmp_path_factory.mktemp("parts"), commands.free_port()
    blobs = folder / "blobs"
    blobs.mkdir()
    with ExitStack() as running:
        real = {
            "redis://localhost:6379/0": running.enter_context(services.valkey(folder / "v")),
            "http://localhost:19530": running.enter_context(services.milvus_lite(folder / "m")),
            "/mnt/clipfleet": str(blobs),
            '"/data"': f'"{home}"',
            "openai/clip-vit-base-patch32": str(tiny),
        }
        exports = put_for(exports, real)
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        processes = []
        for number, line in enumerate(lines(put_for(programs, {"8000": str(port)}))):
            own = folder / str(number)
            own.mkdir()
            command = ["bash", "-c", f"{exports}\nexec {line}"]
            env = {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
            env |= dict.fromkeys(("HOME", "TMPDIR", "HF_HOME"), str(own))
            command = command if hindered else contained(own, blobs, command)
            log = folder / f"{number}.log"
            processes.append(running.enter_context(services.process(command, log, **env)))
        running.callback(_end_together, processes)
        client = running.enter_context(Client(f"http://127.0.0.1:{port}"))
        services.eventually(
            lambda: client.create_collection("images"), stack.START_S, "gateway and workers"
        )
        yield client


def _end_together(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask all processes to end; `services.process` then waits for one after the other."""
    for process in processes:
        process.terminate()


def test_the_parts_one_by_one(client: Client, home: Path, flickr: list[Path]) -> None:
    photos(home / "Pictures", flickr, 12)
    job = client.index("images", home / "Pictures", wait=True)
    assert (job.state, job.done) == ("succeeded", 12)
    assert len(client.search(text="a dog", top_k=3).matches) == 3
    first = client.search(text="a dog", top_k=1).matches[0]
    assert client.thumbnail("images", first.id).startswith(b"\xff\xd8")


@pytest.mark.usefixtures("_contained")
def test_what_contains_them_holds(tmp_path: Path) -> None:
    own, blobs = tmp_path / "own", tmp_path / "blobs"
    own.mkdir()
    blobs.mkdir()
    touch = f"touch here && ! touch {ROOT}/x && ! touch /tmp/x && ! touch {tmp_path}/x"
    subprocess.run(contained(own, blobs, ["sh", "-c", touch]), check=True)
    assert (own / "here").exists()


@pytest.mark.usefixtures("_contained")
def test_all_of_it_works_on_a_read_only_root(client: Client) -> None:
    """An upload uses the gateway's temporary files, the blob store and every part."""
    job = client.upload("uploaded", sorted(SAMPLES.glob("*.png"))[:12], wait=True)
    assert (job.state, job.done) == ("succeeded", 12)
    first = client.search(text="a dog", top_k=1, collection="uploaded").matches[0]
    assert client.thumbnail("uploaded", first.id).startswith(b"\xff\xd8")


@dataclass
class Yardstick:
    """The model and processor of transformers, and numpy, without code of clipfleet."""

    model: Any
    processor: Any
    ids: list[str]
    rows: NDArray[np.float32]

    @classmethod
    def of(cls, model: Path, paths: list[Path]) -> "Yardstick":
        towers, processor = (
            transformers.AutoModel.from_pretrained(model),
            transformers.AutoProcessor.from_pretrained(model),
        )
        ids = [str(path) for path in paths]
        yardstick = cls(towers, processor, ids, np.empty((0, 0), np.float32))
        yardstick.rows = np.concatenate([yardstick.image(path) for path in paths])
        return yardstick

    def image(self, path: Path) -> NDArray[np.float32]:
        pixels = self.processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            return unit(self.model.get_image_features(pixel_values=pixels["pixel_values"]))

    def text(self, text: str) -> NDArray[np.float32]:
        tokens = self.processor(text=[text], return_tensors="pt")
        with torch.no_grad():
            return unit(self.model.get_text_features(**tokens))

    def scores(self, query: NDArray[np.float32]) -> dict[str, float]:
        return dict(zip(self.ids, (self.rows @ query[0]).tolist(), strict=True))


def unit(features: Any) -> NDArray[np.float32]:
    rows = getattr(features, "pooler_output", features).numpy()
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def same(result: Any, scores: dict[str, float]) -> None:
    """Check that the nearest images come first, each with its own score.

    Images whose scores differ by less than the rounding of pixels may change places.
    """
    best = sorted(scores.values(), reverse=True)[:TOP_K]
    seen = [match.score for match in result.matches]
    assert len({match.id for match in result.matches}) == TOP_K
    assert np.allclose(seen, best, rtol=0, atol=ROUNDING)
    assert np.allclose(seen, [scores[match.id] for match in result.matches], rtol=0, atol=ROUNDING)


def every_mode_agrees(client: Client, collection: str, yardstick: Yardstick) -> None:
    for text in ("two dogs in the snow", "une église la nuit", "🚗"):
        result = client.search(collection, text=text, top_k=TOP_K)
        same(result, yardstick.scores(yardstick.text(text)))
    for image_id in yardstick.ids[::20]:
        path = Path(image_id)
        expected = yardstick.scores(yardstick.image(path))
        same(client.search(collection, image=path, top_k=TOP_K), expected)
        encoded = {"base64": base64.b64encode(path.read_bytes()).decode()}
        url = f"{client.url}/v1/collections/{collection}/search"
        answer = httpx.post(url, json={"image": encoded, "top_k": TOP_K}, trust_env=False)
        same(SearchResult.model_validate_json(answer.content), expected)
        same(client.search(collection, id=image_id, top_k=TOP_K), expected)
        vector = yardstick.image(path)[0].tolist()
        same(client.search(collection, vector=vector, top_k=TOP_K), expected)


def test_photos_are_found_by_every_mode_as_by_the_model_itself(
    client: Client, tiny: Path, home: Path, flickr: list[Path]
) -> None:
    """test_backup.py does the same after a restart."""
    paths = photos(home / "photos", flickr, PHOTOS)
    client.create_collection("photos")
    job = finished(client, client.index("photos", home / "photos").id)
    assert (job.state, job.done, job.total) == ("succeeded", PHOTOS, PHOTOS)
    every_mode_agrees(client, "photos", Yardstick.of(tiny, paths))
