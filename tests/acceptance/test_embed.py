"""Embeddings over HTTP equal those that collections hold."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import NotFoundError, OpenAI
from PIL import Image

from support.in_process import InProcess
from support.stack import Up, finished, photos


def encoded(path: Path) -> dict[str, str]:
    return {"base64": base64.b64encode(path.read_bytes()).decode()}


def test_embeddings_are_those_that_the_collection_holds_and_their_cosine_is_the_score(
    service: Up, flickr: list[Path]
) -> None:
    folder = service.beside("embedded")
    paths = photos(folder, flickr, 3)
    with service.client() as client, service.http() as http:
        client.create_collection("embedded")
        finished(client, client.index("embedded", folder).id)
        images = {"images": [encoded(path) for path in paths]}
        answer = http.post("/v1/embed", json=images).json()
        rows = np.asarray(answer["embeddings"])
        assert rows.shape == (3, answer["dim"])
        for path, row in zip(paths, rows, strict=True):
            result = client.search("embedded", id=str(path), top_k=1, include_values=True)
            assert np.allclose(result.matches[0].values or (), row, atol=1e-4)

        texts = http.post("/v1/embed", json={"texts": ["two dogs", "🚗"]}).json()["embeddings"]
        assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
        by_words = client.search("embedded", text="two dogs")
        scores = dict(zip(map(str, paths), rows @ np.asarray(texts[0]), strict=True))
        assert {match.id for match in by_words.matches} == set(scores)
        for match in by_words.matches:
            assert abs(match.score - scores[match.id]) < 1e-4


def test_what_cannot_be_embedded_is_refused_and_named(
    memory_service: InProcess, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (9, 9)).save(good)
    bad.write_text("no picture")
    refused: list[tuple[dict[str, Any], int, str]] = [
        ({}, 422, "either texts or images"),
        ({"texts": ["a"], "images": [encoded(good)]}, 422, "either texts or images"),
        ({"texts": []}, 422, "at least 1"),
        ({"texts": [""]}, 422, "at least 1"),
        ({"texts": ["x" * 20_000]}, 422, "20000 characters"),
        ({"texts": ["x"] * 65}, 413, "64"),
        ({"images": [encoded(good), encoded(bad)]}, 422, "images[1]"),
        ({"images": [{"base64": "%%%"}]}, 422, "images[0]"),
        ({"texts": ["x"], "model": "none/such"}, 503, "none/such"),
    ]
    with memory_service.http() as http:
        for body, status, message in refused:
            answer = http.post("/v1/embed", json=body)
            assert answer.status_code == status, (body, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert message in answer.text, answer.text


def test_the_client_of_openai_gets_the_same_embeddings(service: Up, flickr: list[Path]) -> None:
    paths = photos(service.beside("openai"), flickr, 2)
    uris = ["data:image/jpeg;base64," + encoded(path)["base64"] for path in paths]
    texts = ["two dogs", "a car 🚗"]
    with (
        service.client() as client,
        OpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as other,
    ):
        (model,) = other.models.list().data
        answer = other.embeddings.create(model=model.id, input=[*texts, *uris])
        expected = [*client.embed(texts=texts), *client.embed(images=paths)]
        assert np.allclose([item.embedding for item in answer.data], expected, atol=1e-4)
        with pytest.raises(NotFoundError, match="none/such"):
            other.embeddings.create(model="none/such", input="a")
