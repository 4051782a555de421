"""The nouns with which a query is compared: what else could the words for an image be?

Each model embeds the nouns once. The embeddings are kept as a blob, so that later starts of workers
only read them.
"""

import hashlib
import io
import logging
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from clipfleet.common.blobs import BlobGone, Blobs, BlobsUnavailable
from clipfleet.common.imaging.embedder import Embedder, Embeddings

log = logging.getLogger(__name__)

TEMPLATE = "a photo of a {}"
VERSION = 1  # of how the nouns are embedded
MAX_BYTES = 256_000_000  # of a stored bank
BATCH = 64  # nouns that are embedded at once, between queries


@cache
def nouns() -> tuple[str, ...]:
    """The nouns, in the order of the bank's rows."""
    lines = (Path(__file__).parent / "nouns.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True)
class NounBank:
    """The embeddings of the nouns by one model.

    Attributes:
        rows: float32 [nouns, dim], of unit length.
    """

    rows: Embeddings

    @classmethod
    def of(cls, embedder: Embedder) -> "NounBank":
        """Embed the nouns.

        Example:
            bank = NounBank.of(HashEmbedder(64))
        """
        texts = [TEMPLATE.format(noun) for noun in nouns()]
        parts = [embedder.embed_texts(texts[n : n + BATCH]) for n in range(0, len(texts), BATCH)]
        return cls(np.concatenate(parts))


class NounBanks:
    """Makes the bank of a model at first use, or reads the stored one.

    Args:
        embedder: the model.
        model: its name.
        weights_id: which weights it has; "": its name stands for them.
        blobs: where the bank is stored; None: nowhere.
    """

    def __init__(
        self, embedder: Embedder, model: str = "", weights_id: str = "", blobs: Blobs | None = None
    ) -> None:
        self._embedder, self._blobs = embedder, blobs
        name = "\n".join([model, weights_id, str(embedder.dim), TEMPLATE, *nouns()])
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        self._key = f"nouns/v{VERSION}/{digest}"
        self._bank: NounBank | None = None
        self._lock = threading.Lock()

    def bank(self) -> NounBank:
        """The bank; the first call reads or makes it."""
        with self._lock:
            if self._bank is None:
                self._bank = self._stored() or self._make()
            return self._bank

    def _stored(self) -> NounBank | None:
        if self._blobs is None:
            return None
        try:
            raw = self._blobs.get(self._key, MAX_BYTES)
            rows = np.load(io.BytesIO(raw), allow_pickle=False)
        except (BlobGone, BlobsUnavailable, ValueError, EOFError):
            return None
        same = rows.shape == (len(nouns()), self._embedder.dim) and np.isfinite(rows).all()
        return NounBank(rows.astype(np.float32)) if same else None

    def _make(self) -> NounBank:
        bank = NounBank.of(self._embedder)
        if self._blobs is not None:
            file = io.BytesIO()
            np.save(file, bank.rows)
            file.seek(0)
            try:
                self._blobs.put(self._key, file)
            except BlobsUnavailable as error:
                log.warning("the nouns are embedded again at the next start: %s", error.detail)
        return bank


class Banks:
    """The banks of the models of this process.

    Args:
        blobs: where banks are stored; None: nowhere.
    """

    def __init__(self, blobs: Blobs | None = None) -> None:
        self._blobs = blobs
        self._banks: dict[tuple[str, str, int], NounBanks] = {}
        self._lock = threading.Lock()

    def of(self, embedder: Embedder, model: str, weights_id: str) -> NounBank:
        """The bank of a model, which is read or made at first use."""
        key = (model, weights_id, embedder.dim)
        with self._lock:
            if key not in self._banks:
                self._banks[key] = NounBanks(embedder, model, weights_id, self._blobs)
        return self._banks[key].bank()
