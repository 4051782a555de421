"""Tags stored images, and images that are indexed, with words of a vocabulary."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.collection import LIST_ELEMENTS, image_problem, weights_problem
from clipfleet.common.imaging.embedder import Embedder, Embeddings
from clipfleet.common.ledger.tags import TagRules, read_rules
from clipfleet.common.ledger.turns import write_in_turn
from clipfleet.common.store import Record
from clipfleet.workers.analysis.task import Refused, Run
from clipfleet.workers.query.confidence import label_confidences
from clipfleet.workers.query.nouns import NounBank, NounBanks

TEXTS_AT_ONCE = 64  # words that are embedded between two signs of progress
NUMBERS_AT_ONCE = 500_000  # confidences in memory
REMEMBERED = 8  # vocabularies whose embeddings are kept in memory


@dataclass(frozen=True)
class Model:
    """A model that embeds words.

    Attributes:
        embedder: the model.
        name: its name.
        weights_id: which weights it has; "": not known.
        blobs: where the embeddings of common nouns are stored.
    """

    embedder: Embedder
    name: str
    weights_id: str
    blobs: Blobs


class Tagger:
    """Says which words of a vocabulary images get. It remembers the embeddings of the words."""

    def __init__(self) -> None:
        self._labels: OrderedDict[tuple[str, str, TagRules], Embeddings] = OrderedDict()
        self._banks: dict[tuple[str, str, int], NounBanks] = {}
        self._lock = threading.Lock()

    def words(
        self,
        rules: TagRules,
        embeddings: Embeddings,
        model: Model,
        progress: Callable[[], None] = lambda: None,
    ) -> list[list[str]]:
        """The words of each image, in the order of the vocabulary.

        Args:
            rules: the vocabulary, and how sure a word must be.
            embeddings: of the images [n, dim].
            model: the model of the collection.
            progress: called now and then.
        """
        labels = self._embedded(rules, model, progress)
        bank, chosen = self._bank(model), list[list[str]]()
        step = max(1, NUMBERS_AT_ONCE // len(labels))
        for start in range(0, len(embeddings), step):
            sure = label_confidences(embeddings[start : start + step], labels, bank)
            chosen += [_chosen(row, rules) for row in sure]
            progress()
        return chosen

    def _embedded(self, rules: TagRules, model: Model, progress: Callable[[], None]) -> Embeddings:
        key = (model.name, model.weights_id, rules)
        with self._lock:
            if key not in self._labels:
                texts, parts = rules.texts(), []
                for start in range(0, len(texts), TEXTS_AT_ONCE):
                    parts.append(model.embedder.embed_texts(texts[start : start + TEXTS_AT_ONCE]))
                    progress()
                self._labels[key] = np.concatenate(parts)
            self._labels.move_to_end(key)
            while len(self._labels) > REMEMBERED:
                self._labels.popitem(last=False)
            return self._labels[key]

    def _bank(self, model: Model) -> NounBank:
        key = (model.name, model.weights_id, model.embedder.dim)
        with self._lock:
            if key not in self._banks:
                self._banks[key] = NounBanks(
                    model.embedder, model.name, model.weights_id, model.blobs
                )
        return self._banks[key].bank()


def _chosen(sure: NDArray[np.float64], rules: TagRules) -> list[str]:
    """The words that are sure enough, in the order of the vocabulary."""
    places = np.flatnonzero(sure >= rules.min_confidence)
    if len(places) > LIST_ELEMENTS:  # the surest ones
        places = np.sort(places[np.argsort(-sure[places], kind="stable")[:LIST_ELEMENTS]])
    return [rules.vocabulary[n] for n in places]


TAGGER = Tagger()  # of this process: its vocabularies are embedded once


def with_words(existing: Any, words: Sequence[str], rules: TagRules) -> list[str] | None:
    """The value of the field with the words.

    Elements that are no words of the vocabulary stay: they come from somebody else.

    Returns:
        The value; None when the existing one is no list of strings.
    """
    if existing is None:
        existing = []
    if not isinstance(existing, list) or not all(isinstance(element, str) for element in existing):
        return None
    vocabulary = set(rules.vocabulary)
    kept = [element for element in existing if element not in vocabulary]
    return [*kept, *words][:LIST_ELEMENTS]


def retagged(record: Record, words: Sequence[str], rules: TagRules) -> Record | str:
    """The record with the words as tags, or why it cannot have them."""
    value = with_words(record.metadata.get(rules.field), words, rules)
    if value is None:
        return f"its metadata {rules.field!r} is no list of strings; choose another field"
    metadata = {name: kept for name, kept in record.metadata.items() if name != rules.field}
    if value or rules.field in record.metadata:
        metadata[rules.field] = value
    return replace(record, metadata=metadata)


class Tags:
    """The task that tags stored images.

    Args:
        tagger: chooses the words.
    """

    def __init__(self, tagger: Tagger = TAGGER) -> None:
        self._tagger = tagger

    def work(self, run: Run, rows: Sequence[Record]) -> int:
        if problem := weights_problem(run.collection, run.weights_id):
            raise Refused(problem)
        rules = self._rules(run)
        model = Model(run.embedder, run.job.new.model, run.weights_id, run.blobs)
        embeddings = np.stack([row.embedding for row in rows])
        chosen = self._tagger.words(rules, embeddings, model, run.lease.progress)
        run.lease.progress()
        words = {row.pk: those for row, those in zip(rows, chosen, strict=True)}
        changes = _changes(run, rows, words, rules)
        if not changes:
            return 0
        run.patiently(run.lease.confirm)
        known = {row.pk: row for row in rows}
        changed: list[str] = []

        def write(keys: list[str]) -> None:
            now = _as_they_are(run, keys, known)
            records = _changes(run, now, words, rules)
            run.store.update(run.collection, records)
            changed.extend(record.pk for record in records)

        run.patiently(
            partial(
                write_in_turn, run.catalogue, run.collection, [row.pk for row in changes], write
            )
        )
        run.patiently(partial(run.catalogue.record_write, run.collection))
        return len(set(changed))

    def finish(self, run: Run) -> None:
        """Nothing: each image is for itself."""

    def _rules(self, run: Run) -> TagRules:
        key = str(run.parameters["rules"])
        try:
            return run.patiently(partial(read_rules, run.blobs, key))
        except BlobGone as error:
            raise Refused("the vocabulary of the job was deleted; start the job again") from error


def _changes(
    run: Run, rows: Sequence[Record], words: Mapping[str, Sequence[str]], rules: TagRules
) -> list[Record]:
    """Those of the rows that change, as they are to be. Images that cannot change fail."""
    changes, now = [], int(time.time() * 1000)
    for row in rows:
        new = retagged(row, words[row.pk], rules)
        if isinstance(new, Record) and new.metadata == row.metadata:
            continue
        problem = new if isinstance(new, str) else _problem(run, new)
        if problem or isinstance(new, str):
            run.failures[row.pk] = str(problem)
        else:
            changes.append(replace(new, indexed_at=now))
    return changes


def _problem(run: Run, new: Record) -> str | None:
    limit = run.metadata_bytes
    return image_problem(run.collection, new.id, new.uri, new.label, new.metadata, limit)


def _as_they_are(run: Run, keys: Sequence[str], known: Mapping[str, Record]) -> list[Record]:
    """The rows as they are now; those that nobody wrote since they were read are not read again."""
    times = {pk: print_.indexed_at for pk, print_ in _fingerprints(run, keys).items()}
    same = [known[pk] for pk in keys if times.get(pk) == known[pk].indexed_at]
    others = [pk for pk in keys if pk in times and times[pk] != known[pk].indexed_at]
    again = run.store.fetch(run.collection, others, include_values=False) if others else {}
    return [*same, *again.values()]


def _fingerprints(run: Run, keys: Sequence[str]) -> Mapping[str, Any]:
    return run.store.fingerprints(run.collection, keys)
