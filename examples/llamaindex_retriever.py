"""A clipfleet collection as a retriever of LlamaIndex, by words or by an image.

    pip install clipfleet llama-index-core
    python examples/llamaindex_retriever.py "a dog in the snow" --collection photos

The nodes are `ImageNode`s, as multi-modal query engines take them.
"""

import argparse
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, ImageType, NodeWithScore, QueryBundle

from clipfleet import Client, Match


class ClipfleetRetriever(BaseRetriever):
    """Finds images.

    Args:
        client: a client of the service.
        collection: the collection.
        options: arguments of `Client.search`, such as `top_k=5` or `filter={"label": "cat"}`.
    """

    def __init__(self, client: Client, collection: str, **options: Any) -> None:
        super().__init__()
        self._client, self._collection, self._options = client, collection, options

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Search by the image of a query if it has one, else by its words."""
        by_image = {"image": query_bundle.image_path}
        query = by_image if query_bundle.image_path else {"text": query_bundle.query_str}
        result = self._client.search(self._collection, **query, **self._options)
        return [NodeWithScore(node=node_of(match), score=match.score) for match in result.matches]


class ClipfleetEmbedding(MultiModalEmbedding):
    """CLIP embeddings of texts and images, which can be compared with each other."""

    _client: Client = PrivateAttr()

    def __init__(self, client: Client, **options: Any) -> None:
        super().__init__(**options)
        self._client = client

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._client.embed(texts=[text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._client.embed(texts=texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    def _get_image_embedding(self, img_file_path: ImageType) -> list[float]:
        return self._client.embed(images=[img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[list[float]]:
        return self._client.embed(images=img_file_paths)

    async def _aget_image_embedding(self, img_file_path: ImageType) -> list[float]:
        return self._get_image_embedding(img_file_path)


def node_of(match: Match) -> ImageNode:
    is_url = match.uri.startswith(("http://", "https://"))
    return ImageNode(
        id_=match.id,
        text=match.label or match.id,
        metadata=match.metadata,
        image_url=match.uri if is_url else None,
        image_path=match.uri if match.uri.startswith("/") else None,  # on the service's machine
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text")
    parser.add_argument("--collection", default="images")
    arguments = parser.parse_args()
    with Client() as client:
        for result in ClipfleetRetriever(client, arguments.collection).retrieve(arguments.text):
            print(f"{result.score:.3f}  {result.text}  {result.node_id}")
