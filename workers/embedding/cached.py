"""An embedder with a cache of text embeddings."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.common.store import Vectors
from clipfleet.workers.embedding.proxy import EmbedderProxy


class CachedEmbedder(EmbedderProxy):
    """Embeds equal texts of a batch once, and texts in the cache not at all.

    Texts are compared exactly, including spaces: only the model knows what its tokenizer ignores.

    Args:
        size: the number of texts in the cache, which drops the least recently used; 0 disables it.

    Attributes:
        hits: the number of texts that needed no pass through the model.
        misses: the number of texts that were embedded.
    """

    def __init__(self, embedder: Embedder, size: int) -> None:
        super().__init__(embedder)
        self._size = size
        # Keyed by digest: a text of a thousand words takes no more memory than a short one.
        self._rows: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        distinct = {_key(text): text for text in texts}
        rows = self._known(distinct)
        new = {key: text for key, text in distinct.items() if key not in rows}
        if new:
            embeddings = self._embedder.embed_texts(list(new.values()))
            rows.update(zip(new, embeddings, strict=True))
            self._remember({key: rows[key] for key in new})
        with self._lock:
            self.misses += len(new)
            self.hits += len(texts) - len(new)
        result = [rows[_key(text)] for text in texts]
        return np.stack(result) if result else np.empty((0, self.dim), np.float32)

    def _known(self, keys: dict[bytes, str]) -> dict[bytes, Vectors]:
        with self._lock:
            known = {key: self._rows[key] for key in keys if key in self._rows}
            for key in known:
                self._rows.move_to_end(key)
        return known

    def _remember(self, rows: dict[bytes, Vectors]) -> None:
        with self._lock:
            for key, row in rows.items():
                self._rows[key] = row.copy()  # a view would keep its whole batch
            while len(self._rows) > self._size:
                self._rows.popitem(last=False)


def _key(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
