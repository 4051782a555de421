"""Answers how sure words are for stored images."""

from collections.abc import Sequence

import numpy as np

from clipfleet.common.errors import InvalidRequest
from clipfleet.common.queue.messages import Answer, Labelling
from clipfleet.common.store import Store, Vectors
from clipfleet.workers.query.confidence import label_confidences
from clipfleet.workers.query.nouns import NounBank


def labelled(
    labelling: Labelling, labels: Sequence[Vectors], store: Store, bank: NounBank
) -> Answer:
    """The confidences of the labels for each image, as one row of numbers.

    Args:
        labelling: the images. Those that are gone get 0.
        labels: the embeddings of the labels.

    Raises:
        NotFound: the collection was deleted.
        InvalidRequest: the embeddings are not of the collection's length.
    """
    collection = labelling.collection
    if any(row.size != collection.dim for row in labels):
        raise InvalidRequest("the collection's embeddings are of another model")
    rows = store.fetch(collection, list(labelling.pks))
    missing = np.zeros(collection.dim, np.float32)
    images = np.stack([rows[pk].embedding if pk in rows else missing for pk in labelling.pks])
    sure = label_confidences(images, np.stack(labels), bank)
    sure[[pk not in rows for pk in labelling.pks]] = 0
    return Answer(embedding=tuple(np.round(sure, 4).ravel().tolist()))
