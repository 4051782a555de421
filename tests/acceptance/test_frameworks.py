"""The adapters of examples/, run with the real LangChain and LlamaIndex."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle

from clipfleet import Client
from clipfleet.testing import MemoryService
from support import stack
from support.in_process import PixelEmbedder

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "clipfleet" / "samples" / "animals"
CAT, DOG = str(SAMPLES / "cat.png"), str(SAMPLES / "dog.png")


def example(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def animals() -> Iterator[MemoryService]:
    """A service that sees colours. `pets` has the carried animals, by their paths."""
    with MemoryService(embedder=PixelEmbedder()) as running, running.client() as client:
        client.index("pets", SAMPLES, label_from_folder=True, wait=True)
        yield running


@pytest.fixture
def client(animals: MemoryService) -> Iterator[Client]:
    with animals.client() as client:
        yield client


def test_a_collection_is_a_vector_store_of_langchain(client: Client) -> None:
    store = example("langchain_store").ClipfleetStore(client, "pets")
    documents = store.similarity_search("a cat", k=3)
    assert len(documents) == 3
    assert documents[0].page_content == "animals"
    ((nearest, score),) = store.similarity_search_with_score(image=CAT, k=1)
    assert (nearest.id, nearest.metadata["uri"]) == (CAT, CAT)
    assert score == pytest.approx(1)
    (vector,) = store.embeddings.embed_images([DOG])
    assert store.similarity_search_by_vector(vector, k=1)[0].id == DOG
    assert [document.id for document in store.get_by_ids([DOG, "gone"])] == [DOG]
    ((_, relevance),) = store.similarity_search_with_relevance_scores("a cat", k=1)
    assert 0 <= relevance <= 1


def test_its_retriever_is_part_of_a_chain(client: Client) -> None:
    store = example("langchain_store").ClipfleetStore(client, "pets")
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"label": "animals"}})
    chain = retriever | (lambda documents: [document.id for document in documents])
    assert len(chain.invoke("a cat")) == 2
    assert asyncio.run(chain.ainvoke("a cat")) == chain.invoke("a cat")
    none = store.as_retriever(search_kwargs={"filter": {"label": "none"}})
    assert none.invoke("a cat") == []


def test_langchain_adds_and_deletes_images(client: Client) -> None:
    store = example("langchain_store").ClipfleetStore(client, "new")
    assert store.add_images([CAT, DOG], ids=["cat", "dog"], label="pet") == ["cat", "dog"]
    assert store.similarity_search("", k=1, image=DOG)[0].id == "dog"
    assert store.delete(["dog"])
    assert client.count("new") == 1
    assert store.add_images([DOG]) == [DOG]


def test_the_embeddings_of_both_are_those_of_the_service(client: Client) -> None:
    chain = example("langchain_store").ClipfleetEmbeddings(client)
    index = example("llamaindex_retriever").ClipfleetEmbedding(client)
    texts = ["a cat", "a dog"]
    expected = np.array(client.embed(texts=texts))
    assert np.allclose(chain.embed_documents(texts), expected)
    assert np.allclose(chain.embed_query("a dog"), expected[1])
    assert np.allclose(index.get_text_embedding_batch(texts), expected)
    assert np.allclose(asyncio.run(index.aget_query_embedding("a dog")), expected[1])
    images = np.array(client.embed(images=[CAT, DOG]))
    assert np.allclose(chain.embed_images([CAT, DOG]), images)
    assert np.allclose(index.get_image_embedding_batch([CAT, DOG]), images)


def test_a_collection_is_a_retriever_of_llamaindex(client: Client) -> None:
    retriever = example("llamaindex_retriever").ClipfleetRetriever(client, "pets", top_k=2)
    nodes = retriever.retrieve("a cat")
    assert len(nodes) == 2
    assert nodes[0].text == "animals"
    assert asyncio.run(retriever.aretrieve("a cat"))[0].node_id == nodes[0].node_id
    best = retriever.retrieve(QueryBundle("", image_path=CAT))[0]
    assert (best.node_id, best.node.image_path) == (CAT, CAT)
    assert best.score == pytest.approx(1)


@pytest.mark.parametrize("name", ["langchain_store", "llamaindex_retriever"])
def test_each_is_a_program(animals: MemoryService, name: str) -> None:
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", "a cat", "--collection", "pets"],
        cwd=ROOT,
        env={**stack.CLEAN, "CLIPFLEET_URL": animals.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert str(SAMPLES) in done.stdout
