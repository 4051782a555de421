"""The rules of tags: which words images get as tags, and where the rules are kept.

The blob store keeps the rules of each job by their content, and those that are saved for images to
come. Both are deleted with the collection.
"""

import hashlib
import io
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.ledger.stored_images import results_of

MAX_BYTES = 16_000_000


class TagRules(BaseModel):
    """Which words images get as tags.

    Attributes:
        v: the version of this record.
        vocabulary: the words, each once.
        field: the metadata field that gets the tags.
        min_confidence: how sure a word must be for an image, 0 to 1.
        template: the text that is embedded for a word, which takes the place of `{}`.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    vocabulary: tuple[str, ...]
    field: str
    min_confidence: float
    template: str

    def texts(self) -> list[str]:
        """The texts that are embedded, one for each word."""
        return [self.template.replace("{}", word) for word in self.vocabulary]


def keep_rules(blobs: Blobs, collection: Collection, rules: TagRules) -> str:
    """Keep the rules of a job in the blob store.

    Returns:
        The key, which is the same for the same rules.
    """
    raw = rules.model_dump_json().encode()
    digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    key = f"{results_of(collection)}/tags/{digest}.json"
    blobs.put(key, io.BytesIO(raw))
    return key


def read_rules(blobs: Blobs, key: str) -> TagRules:
    """Read rules.

    Raises:
        BlobGone: there are none.
        BlobsUnavailable: the blob store is away.
    """
    try:
        return TagRules.model_validate_json(blobs.get(key, MAX_BYTES))
    except ValidationError as error:  # a later release wrote them
        raise BlobGone(key) from error


def save_rules(blobs: Blobs, collection: Collection, rules: TagRules) -> None:
    """Save the rules for images that are indexed from now on."""
    blobs.put(_saved(collection), io.BytesIO(rules.model_dump_json().encode()))


def saved_rules(blobs: Blobs, collection: Collection) -> TagRules | None:
    """The saved rules of a collection; None when it has none."""
    with suppress(BlobGone):
        return read_rules(blobs, _saved(collection))
    return None


def forget_rules(blobs: Blobs, collection: Collection) -> None:
    """Delete the saved rules of a collection, if there are any. Tags stay."""
    blobs.delete(_saved(collection))


def _saved(collection: Collection) -> str:
    return f"{results_of(collection)}/tags/saved.json"
