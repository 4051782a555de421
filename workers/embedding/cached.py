"""An embedder that embeds a text once: equal ones of a batch together, known ones not at all."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.common.store import Vectors
from clipfleet.workers.embedding.proxy import EmbedderProxy


class CachedEmbedder(EmbedderProxy):
    """`size`: texts remembered, the least recently used being forgotten; 0: none.

    Any difference counts, even a space: only the model knows which ones its tokenizer ignores.
    """

    def __init__(self, embedder: Embedder, size: int) -> None:
        super().__init__(embedder)
        self._size = size
        # By digest: a text of a thousand words takes no more room than a short one.
        self._rows: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        distinct = {_key(text): text for text in texts}
        rows = self._known(distinct)
        new = {key: text for key, text in distinct.items() if key not in rows}
        if new:
            made = self._embedder.embed_texts(list(new.values()))
            rows.update(zip(new, made, strict=True))
            self._remember({key: rows[key] for key in new})
        with self._lock:
            self.misses += len(new)
            self.hits += len(texts) - len(new)
        found = [rows[_key(text)] for text in texts]
        return np.stack(found) if found else np.empty((0, self.dim), np.float32)

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
