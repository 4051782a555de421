"""A clipfleet collection as a vector store of LangChain, found by words or by an image.

    pip install clipfleet langchain-core
    python examples/langchain_store.py "a dog in the snow" --collection photos

`ClipfleetStore(client, "photos").as_retriever(search_kwargs={"k": 5})` is a retriever for a chain.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from clipfleet import Client, Image, Match, NotFound


class ClipfleetEmbeddings(Embeddings):
    """CLIP embeddings of texts and images, which can be compared with each other."""

    def __init__(self, client: Client, model: str | None = None) -> None:
        self._client, self._model = client, model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._client.embed(texts=texts, model=self._model)

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def embed_images(self, images: Sequence[str | Path | bytes]) -> list[list[float]]:
        return self._client.embed(images=images, model=self._model)


class ClipfleetStore(VectorStore):
    """The images of a collection as documents: the text is the label, or else the id."""

    def __init__(self, client: Client, collection: str) -> None:
        self._client, self._collection = client, collection

    @property
    def embeddings(self) -> Embeddings:
        return ClipfleetEmbeddings(self._client, self._client.collection(self._collection).model)

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k, **options)]

    def similarity_search_with_score(
        self, query: str = "", k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """Search by words, or by `image=`, `id=`, `vector=` or `terms=`.

        Args:
            query: words; empty to search by something else.
            k: number of documents.
            options: arguments of `Client.search`, such as `filter={"label": "cat"}`.
        """
        result = self._client.search(self._collection, text=query or None, top_k=k, **options)
        return [(document_of(match), match.score) for match in result.matches]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> list[Document]:
        return self.similarity_search("", k, vector=embedding, **options)

    def add_images(self, paths: Sequence[str | Path], **options: Any) -> list[str]:
        """Index image files of this machine; `options` are those of `Client.upload`."""
        ids = list(options.pop("ids", None) or map(str, paths))
        self._client.upload(self._collection, paths, ids=ids, wait=True, **options)
        return ids

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        documents = []
        for name in ids:
            with suppress(NotFound):
                documents.append(document_of(self._client.image(self._collection, name)))
        return documents

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        for name in ids or ():
            self._client.delete_image(self._collection, name)
        return True

    @classmethod
    def from_texts(cls, *_: Any, **__: Any) -> "ClipfleetStore":
        raise NotImplementedError("a collection has images: ClipfleetStore(client, collection)")

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: (cosine + 1) / 2


def document_of(image: Match | Image) -> Document:
    metadata = {**image.metadata, "label": image.label, "uri": image.uri}
    return Document(page_content=image.label or image.id, id=image.id, metadata=metadata)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text")
    parser.add_argument("--collection", default="images")
    arguments = parser.parse_args()
    with Client() as client:
        store = ClipfleetStore(client, arguments.collection)
        for document, score in store.similarity_search_with_score(arguments.text):
            print(f"{score:.3f}  {document.page_content}  {document.id}")
