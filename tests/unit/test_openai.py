"""Embeddings in the shape of OpenAI's API, as its own client sees them."""

import asyncio
import base64
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from clipfleet import ProblemError
from clipfleet.common.imaging.embedder import Embeddings
from clipfleet.testing import HashEmbedder, MemoryService
from support.gateway_harness import World
from support.webserver import body, site

PICTURES = sorted((Path(str(files("clipfleet"))) / "samples" / "music").glob("*.png"))
MODEL = "hash:64"
KEYS: dict[str, dict[str, Any]] = {
    "cf_reader": {"scopes": ["read"]},
    "cf_slow": {"scopes": ["read"], "requests_per_minute": 1},
    "cf_old": {"scopes": ["read"], "expires_at": "2020-01-31T00:00:00Z"},
}


def data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="module")
def service() -> Iterator[MemoryService]:
    with MemoryService(fetch={"allowed_networks": ["127.0.0.1/32"], "tries": 1}) as running:
        yield running


def connect(service: MemoryService, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def client(service: MemoryService) -> Iterator[OpenAI]:
    with connect(service) as client:
        yield client


def rows(answer: Any) -> np.ndarray[Any, Any]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.asarray([item.embedding for item in answer.data], np.float32)


def test_both_formats_are_the_embeddings_of_the_service(
    service: MemoryService, client: OpenAI
) -> None:
    texts = ["a church", "two dogs 🐕"]
    with service.client() as own:
        expected = np.asarray(own.embed(texts=texts), np.float32)
    choices: list[dict[str, Any]] = [
        {},
        {"encoding_format": "base64"},
        {"encoding_format": "float"},
    ]
    for chosen in choices:
        answer: Any = client.embeddings.create(model=MODEL, input=texts, **chosen)
        if chosen.get("encoding_format") == "base64":
            for item in answer.data:
                item.embedding = np.frombuffer(base64.b64decode(item.embedding), "<f4")
        assert np.array_equal(rows(answer), expected)
        assert (answer.object, answer.model) == ("list", MODEL)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 5


def test_the_asynchronous_client_gets_the_same(service: MemoryService, client: OpenAI) -> None:
    async def ask() -> Any:
        async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") as other:
            assert [model.id async for model in other.models.list()] == [MODEL]
            return await other.embeddings.create(model=MODEL, input="a church", dimensions=64)

    assert np.array_equal(
        rows(asyncio.run(ask())), rows(client.embeddings.create(model=MODEL, input="a church"))
    )


def test_a_whole_data_uri_or_url_is_an_image_and_any_other_string_a_text(
    service: MemoryService, client: OpenAI
) -> None:
    first, second = PICTURES[:2]
    with site({"/a.png": body(second.read_bytes())}) as web, service.client() as own:
        url = f"{web.url}/a.png"
        mixed = ["a church", data_uri(first), url, f"see {url}", f"{url} "]
        texts = own.embed(texts=[mixed[0], *mixed[3:]])
        images = own.embed(images=[first, second])
        expected = [texts[0], *images, *texts[1:]]
        answer = client.embeddings.create(model=MODEL, input=mixed)
        assert np.array_equal(rows(answer), np.asarray(expected, np.float32))

        parts: Any = [
            {"type": "text", "text": url},
            {"type": "image_url", "image_url": {"url": data_uri(first), "detail": "low"}},
            {"type": "image_url", "image_url": url},
        ]
        expected = [own.embed(texts=[url])[0], *images]
        answer = client.embeddings.create(model=MODEL, input=parts)
        assert np.array_equal(rows(answer), np.asarray(expected, np.float32))

        for modality, inputs, rows_of_own in (
            ("text", [url, data_uri(first)], own.embed(texts=[url, data_uri(first)])),
            ("image", [url, data_uri(first)], [images[1], images[0]]),
        ):
            answer = client.embeddings.create(
                model=MODEL, input=inputs, extra_body={"modality": modality}
            )
            assert np.array_equal(rows(answer), np.asarray(rows_of_own, np.float32))


def test_more_inputs_than_fit_in_one_message_keep_their_order(client: OpenAI) -> None:
    texts = [f"text {n % 100}" for n in range(2_048)]
    answer = rows(client.embeddings.create(model=MODEL, input=texts))
    assert answer.shape == (2_048, 64)
    assert np.array_equal(answer[:100], answer[2_000 - 100 : 2_000])
    assert len(np.unique(answer, axis=0)) == 100


TOKENS = "check_embedding_ctx_length=False"
IMAGE = data_uri(PICTURES[0])
REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str, str | None]] = [
    ({"input": ""}, openai.BadRequestError, "invalid_request", "empty text", "input"),
    ({"input": ["a", ""]}, openai.BadRequestError, "invalid_request", "empty text", "input[1]"),
    ({"input": []}, openai.BadRequestError, "invalid_request", "empty list", "input"),
    ({"input": None}, openai.BadRequestError, "invalid_request", "must be a text", "input"),
    ({"input": [1, 2]}, openai.BadRequestError, "invalid_request", TOKENS, "input"),
    ({"input": [[1, 2], [3]]}, openai.BadRequestError, "invalid_request", TOKENS, "input"),
    ({"input": [{}]}, openai.BadRequestError, "invalid_request", "image_url", "input[0]"),
    ({"input": "x" * 20_000}, openai.BadRequestError, "invalid_request", "20000", "input[0]"),
    ({"dimensions": 32}, openai.BadRequestError, "invalid_request", "64 numbers", "dimensions"),
    ({"dimensions": 0}, openai.BadRequestError, "invalid_request", "dimensions:", "dimensions"),
    ({"encoding_format": "int8"}, openai.BadRequestError, "invalid_request", "'float'",
     "encoding_format"),
    ({"extra_body": {"modalty": "text"}}, openai.BadRequestError, "invalid_request",
     "did you mean 'modality'", "modalty"),
    ({"input": "data:image/png;base64,AAAA"}, openai.BadRequestError, "bad_image",
     '"modality": "text"', "input[0]"),
    ({"input": "data:image/png;base64,%%"}, openai.BadRequestError, "invalid_request", "base64",
     "input[0]"),
    ({"input": "http://10.0.0.1/a.png"}, openai.BadRequestError, "invalid_request",
     "not a public one", "input[0]"),
    ({"extra_body": {"modality": "image"}}, openai.BadRequestError, "invalid_request",
     "is no image", "input"),
    ({"input": "data:image/svg+xml,<svg>"}, openai.BadRequestError, "invalid_request",
     "without base64", "input"),
    ({"input": ["a"] * 2_049}, openai.APIStatusError, "too_large",
     "CLIPFLEET_LIMITS__EMBEDDING_INPUTS", "input"),
    ({"input": [IMAGE] * 65}, openai.APIStatusError, "too_large", "CLIPFLEET_LIMITS__EMBEDS",
     "input"),
    ({"input": ["a" * 9_000] * 500}, openai.APIStatusError, "too_large",
     "CLIPFLEET_LIMITS__BATCH_BYTES", None),
    ({"model": "text-embedding-3-small"}, openai.NotFoundError, "model_not_found", MODEL, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "code", "message", "param"), REFUSED)
def test_what_is_refused_is_a_typed_error_that_says_why(
    client: OpenAI,
    options: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    message: str,
    param: str | None,
) -> None:
    with pytest.raises(kind, match=re.escape(message)) as refused:
        client.embeddings.create(**{"model": MODEL, "input": "a", **options})
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id
    assert (refused.value.status_code == 413) == (code == "too_large")


@pytest.mark.parametrize(
    "sent", [b'{"input": NaN}', b'{"input": [NaN]}', b"{", b"[]", b"", b"\xff"]
)
def test_a_body_that_is_no_request_is_a_400_in_this_shape(
    service: MemoryService, sent: bytes
) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{service.url}/v1/embeddings", content=sent, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_models_are_listed_and_found(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "clipfleet")
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match="no model 'openai/clip'"):
        client.models.retrieve("openai/clip")


def test_keys_are_those_of_the_service() -> None:
    with MemoryService(api_keys=KEYS) as service:
        with connect(service, "cf_reader") as client:
            assert client.embeddings.create(model=MODEL, input="a").data
        for key, code in (("cf_wrong", "no such API key"), ("cf_old", "expired")):
            with (
                connect(service, key) as client,
                pytest.raises(openai.AuthenticationError, match=code) as refused,
            ):
                client.embeddings.create(model=MODEL, input="a")
            assert refused.value.code == "invalid_api_key"
        with connect(service, "cf_slow") as client:
            client.models.list()
            with pytest.raises(openai.RateLimitError, match="1 requests a minute") as limited:
                client.models.list()
        assert limited.value.code == "rate_limit_exceeded"
        assert limited.value.type == "rate_limit_error"
        assert int(limited.value.response.headers["retry-after"]) > 0


def test_a_model_without_a_worker_is_a_503_if_the_service_uses_it(tmp_path: Path) -> None:
    world = World(tmp_path, model="its-own")
    world.parts.catalogue.add(world.parts.catalogue.all()[0].model_copy(
        update={"name": "third", "model": "of-a-collection"}
    ))  # fmt: skip
    for model, status, code in (
        ("its-own", 503, "unavailable"), ("of-a-collection", 503, "unavailable"),
        ("unknown", 404, "model_not_found"), (None, 503, "unavailable"),
    ):  # fmt: skip
        answer = world.ask("POST /v1/embeddings", "read", json={"input": "a", "model": model})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert ("retry-after" in answer.headers) == (status == 503)
        assert answer.headers["content-type"] == "application/json"


class _Broken(HashEmbedder):
    """A model whose numbers for one text are not finite."""

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        rows = super().embed_texts(texts)
        rows[[text == "broken" for text in texts]] = np.nan
        return rows


def test_numbers_that_are_not_finite_are_an_error_of_their_request_alone() -> None:
    with (
        MemoryService(embedder=_Broken(64)) as service,
        connect(service) as client,
        service.client() as own,
    ):
        requests: list[Callable[[], Any]] = [
            lambda: client.embeddings.create(model=MODEL, input=["fine", "broken"]),
            lambda: own.embed(texts=["fine", "broken"]),
        ]
        for ask in requests:
            with pytest.raises((openai.InternalServerError, ProblemError)) as failed:
                ask()
            status: Any = failed.value
            assert getattr(status, "status_code", getattr(status, "status", 0)) == 500
        assert len(client.embeddings.create(model=MODEL, input="fine").data) == 1


def test_the_shape_is_that_of_its_paths_alone_also_below_a_prefix() -> None:
    with MemoryService(root_path="/clip") as service:
        for path in ("/v1/embeddings", "/clip/v1/embeddings"):
            assert "error" in httpx.get(service.url + path).json()
        for path in ("/v1/embed", "/v1/collections/models/jobs", "/v1/embeddings-of", "/v1"):
            answer = httpx.get(service.url + path)
            assert answer.headers["content-type"] == "application/problem+json", path


def test_the_example_of_the_documentation_works(service: MemoryService) -> None:
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    with site({"/church.jpg": body(PICTURES[0].read_bytes())}) as web:
        for theirs, ours in (
            ("http://localhost:8000", service.url), ("https://example.org", web.url),
        ):  # fmt: skip
            assert theirs in example
            example = example.replace(theirs, ours)
        names: dict[str, Any] = {}
        exec(example, names)
        names["client"].close()
    assert len(names["text"]) == len(names["image"]) == 64
