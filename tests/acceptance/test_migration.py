"""A migration and the way back on a real `clipfleet up`, under a constant load of searches."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipfleet.common.imaging.embedder import HashEmbedder
from support import services, stack
from support.stack import Up

MODELS = {"hash:32": 32, "hash:48": 48}
IMAGES, SEARCHERS = 60, 3
NAME = "migrated"


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    first, second = MODELS
    with stack.up(
        tmp_path_factory.mktemp("two") / "data", first, "--also-model", second
    ) as running:
        yield running


class Searching:
    """Searches all the time, and checks each answer against the model that it names."""

    def __init__(self, up: Up, paths: list[Path]) -> None:
        self._up, self._over = up, threading.Event()
        self.faults: list[str] = []
        self.models: set[str] = set()
        self._embedders = {model: HashEmbedder(dim) for model, dim in MODELS.items()}
        self._vectors = {
            model: {str(path): self._embedded(embedder, path) for path in paths}
            for model, embedder in self._embedders.items()
        }
        self._threads = [threading.Thread(target=self._search) for _ in range(SEARCHERS)]

    @staticmethod
    def _embedded(embedder: HashEmbedder, path: Path) -> Any:
        pixels = embedder.preprocess.apply(np.asarray(Image.open(path).convert("RGB")))
        return embedder.embed_images(pixels[None])[0]

    def __enter__(self) -> "Searching":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _search(self) -> None:
        number = 0
        with self._up.http() as http:
            while not self._over.is_set():
                number += 1
                text = f"text {number}"
                query = {"text": text, "top_k": 3}
                answer = http.post(f"/v1/collections/{NAME}/search", json=query)
                if answer.status_code == 200:
                    self._check(text, answer.json())
                else:
                    self.faults.append(answer.text)

    def _check(self, text: str, answer: dict[str, Any]) -> None:
        model = answer["model"]
        self.models.add(model)
        (query,) = self._embedders[model].embed_texts([text])
        for match in answer["matches"]:
            score = float(query @ self._vectors[model][match["id"]])
            if abs(score - match["score"]) > 1e-3:
                self.faults.append(f"{model}: {match['score']} in place of {score}")


def test_no_answer_is_an_error_or_of_two_models(two_models: Up) -> None:
    first, second = MODELS
    paths = []
    for n in range(IMAGES):
        paths.append(two_models.beside(f"{n}.png"))
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (9, 9, 3), np.uint8)).save(
            paths[-1]
        )
    folder = str(paths[0].parent)

    def migrate(*options: str) -> str:
        done = two_models.cli("collections", "migrate", NAME, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with two_models.client() as client:
        client.index(NAME, folder, wait=True)
        with Searching(two_models, paths) as searching:
            assert "ready" in migrate("--model", second, "--follow")
            part = two_models.part("planner")
            part.kill()  # it comes back, and the migration goes on
            assert f"{second}: {IMAGES} images of 48 numbers, answers searches" in migrate("--swap")
            assert "ready" in migrate("--rollback")
            migrate("--swap")
            client.delete_image(NAME, str(paths[0]))
            assert "finished" in migrate("--finish")
            assert client.collection(NAME).count == IMAGES - 1
            services.eventually(
                lambda: "ready" in migrate("--model", first, "--follow"), 120, "the way back"
            )
            migrate("--swap")
            assert "finished" in migrate("--finish")
            collection = client.collection(NAME)
            assert (collection.model, collection.count) == (first, IMAGES - 1)
        assert searching.faults == []
        assert searching.models == {first, second}
