"""Tags on every store: a chunk that runs twice writes once, and other writers lose nothing."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from clipfleet.common.blobs import Blobs
from clipfleet.common.collection import Collection
from clipfleet.common.errors import Conflict, NotFound
from clipfleet.common.imaging.embedder import HashEmbedder
from clipfleet.common.ledger import Job, NewJob
from clipfleet.common.ledger.catalogue import Catalogue, MemoryCatalogue, RedisCatalogue
from clipfleet.common.ledger.migrations import Migration
from clipfleet.common.ledger.stored_images import VERSION, stored_images
from clipfleet.common.ledger.tags import TagRules, keep_rules
from clipfleet.common.store import Record, Store
from clipfleet.workers.analysis.tags import Tagger, Tags
from clipfleet.workers.analysis.task import Run
from support.stores import DIM, a_record

T = TypeVar("T")
EMBEDDER = HashEmbedder(DIM)
RULES = TagRules(vocabulary=("one", "two"), field="marks", min_confidence=0.5, template="a {}")


class Held:
    """A lease that is never lost."""

    def progress(self) -> None: ...

    def confirm(self) -> None: ...

    def retry_while_unavailable(self, call: Callable[[], T], waiting: Any) -> T:  # noqa: ARG002
        return call()


class Given(Tagger):
    """Gives images the word that their embedding is."""

    def words(self, rules: TagRules, embeddings: Any, *_: Any) -> list[list[str]]:
        labels = EMBEDDER.embed_texts(rules.texts())
        return [
            [
                word
                for word, label in zip(rules.vocabulary, labels, strict=True)
                if label @ row > 0.9
            ]
            for row in embeddings
        ]


def rows() -> list[Record]:
    labels = EMBEDDER.embed_texts(RULES.texts())
    return [
        replace(
            a_record(f"{n}", n, indexed_at=1, metadata={"year": n, "marks": ["mine"]}),
            embedding=labels[n % 2],
        )
        for n in range(6)
    ]


def run_of(store: Store, photos: Collection, tmp_path: Path) -> Run:
    blobs = Blobs(str(tmp_path))
    source = stored_images("tags", {"rules": keep_rules(blobs, photos, RULES)})
    new = NewJob(
        v=VERSION, id="j", collection=photos.name, generation=photos.generation,
        model=photos.model, namespace="", source=source,
    )  # fmt: skip
    return Run(
        job=Job(new, "running", 0.0), collection=photos, lease=Held(), store=store,
        catalogue=MemoryCatalogue(), blobs=blobs, embedder=EMBEDDER, stopping=threading.Event(),
        metadata_bytes=8_000, waiting=lambda _: None,
    )  # fmt: skip


def marks(store: Store, photos: Collection, known: Sequence[Record]) -> list[Any]:
    back = store.fetch(photos, [row.pk for row in known])
    return [back[row.pk].metadata.get("marks") for row in known if row.pk in back]


def test_a_chunk_that_runs_twice_writes_once(
    store: Store, photos: Collection, tmp_path: Path
) -> None:
    known, run, task = rows(), run_of(store, photos, tmp_path), Tags(Given())
    store.upsert(photos, known)
    assert task.work(run, known) == 6
    wanted = [["mine", RULES.vocabulary[n % 2]] for n in range(6)]
    assert marks(store, photos, known) == wanted
    now = store.fetch(photos, [row.pk for row in known])
    assert task.work(run, list(now.values())) == 0
    assert task.work(run, known) == 0, "the rows as another worker read them before"
    assert marks(store, photos, known) == wanted
    back = store.fetch(photos, [row.pk for row in known])
    assert all(np.allclose(back[row.pk].embedding, row.embedding) for row in known)
    assert [back[row.pk].metadata["year"] for row in known] == list(range(6))


def test_what_others_write_or_delete_meanwhile_stays(
    store: Store, photos: Collection, tmp_path: Path
) -> None:
    known, run = rows(), run_of(store, photos, tmp_path)
    store.upsert(photos, known)
    changed = replace(known[0], label="new", indexed_at=2, metadata={"year": 7})
    store.update(photos, [changed])
    store.delete(photos, [known[1].pk])
    assert Tags(Given()).work(run, known) == 5
    back = store.fetch(photos, [row.pk for row in known])
    assert known[1].pk not in back
    assert back[known[0].pk].label == "new"
    assert back[known[0].pk].metadata == {"year": 7, "marks": ["one"]}


@pytest.fixture(params=["memory", "redis"])
def catalogue(request: pytest.FixtureRequest) -> Catalogue:
    if request.param == "memory":
        return MemoryCatalogue()
    return RedisCatalogue(request.getfixturevalue("client"))


def test_a_list_is_declared_later(catalogue: Catalogue) -> None:
    photos = Collection.new("photos", metric="cosine", model="m", dim=4, fields={"year": "int"})
    catalogue.add(photos)
    declared = catalogue.declare(photos, "tags", "string[]")
    assert declared.fields == {"year": "int", "tags": "string[]"}
    assert declared.created_at == photos.created_at
    assert catalogue.find("photos") == declared
    assert catalogue.declare(photos, "tags", "string[]") == declared
    with pytest.raises(Conflict, match="is int, not string"):
        catalogue.declare(photos, "year", "string[]")
    other = Collection.new("photos", metric="cosine", model="n", dim=4, fields={})
    with pytest.raises(NotFound):
        catalogue.declare(other, "tags", "string[]")
    assert catalogue.change_migration(None, Migration.begin(declared, other, 0.0, "", None))
    with pytest.raises(Conflict, match="is being migrated"):
        catalogue.declare(declared, "more", "string[]")
    assert catalogue.declare(declared, "tags", "string[]") == declared
