"""Tags on a whole service in memory: the job, the dry run, saved vocabularies, bad input."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipfleet import InvalidRequest, NotFound, ProblemError
from clipfleet.client import Client
from clipfleet.common.ledger.tags import TagRules
from clipfleet.testing import HashEmbedder
from clipfleet.workers.analysis.tags import with_words
from support.in_process import InProcess

WORDS = ["red", "green", "blue"]


class Colours(HashEmbedder):
    """An image and the text of its colour have the same embedding; all others are unrelated."""

    def embed_images(self, pixels: Any) -> Any:
        names = [WORDS[int(image.reshape(-1, 3).mean(0).argmax())] for image in pixels]
        return self.embed_texts([f"a photo of a {name}" for name in names])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InProcess]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, name in enumerate(WORDS):
        colour = tuple(255 if part == n else 0 for part in range(3))
        for copy in range(3):
            Image.new("RGB", (20 + copy, 20), colour).save(folder / f"{name}-{copy}.png")
    with InProcess(embedder=Colours(64), source_roots=[tmp_path]) as service:
        with service.client() as client:
            client.index("photos", str(folder), wait=True)
        yield service


@pytest.fixture
def client(service: InProcess) -> Iterator[Client]:
    with service.client() as client:
        yield client


def tags_of(client: Client, collection: str = "photos") -> dict[str, Any]:
    ids = list(client.iter_ids(collection))
    return {
        Path(image_id).name: client.image(collection, image_id).metadata.get("tags")
        for image_id in ids
    }


RIGHT = {f"{name}-{copy}.png": [name] for name in WORDS for copy in range(3)}


def test_each_image_gets_its_words_and_a_second_job_writes_nothing(client: Client) -> None:
    job = client.tag("photos", WORDS, wait=True)
    assert (job.state, job.task, job.total, job.done) == ("succeeded", "tags", 9, 9)
    assert tags_of(client) == RIGHT
    assert client.collection("photos").fields == {"tags": "string[]"}
    assert client.count("photos", filter={"tags": {"$contains": "red"}}) == 3
    again = client.tag("photos", WORDS, wait=True)
    assert (again.state, again.done, again.skipped) == ("succeeded", 0, 9)
    assert client.jobs()[0].source == "stored images: tags"


def test_other_elements_of_the_list_stay_and_words_that_do_not_fit_go(client: Client) -> None:
    client.tag("photos", WORDS, wait=True)
    client.update_images("photos", all=True, metadata={"tags": ["mine", "red"]})
    client.tag("photos", WORDS, wait=True)
    assert tags_of(client) == {name: ["mine", *words] for name, words in RIGHT.items()}


def test_only_the_images_of_a_filter(client: Client) -> None:
    client.tag("photos", WORDS, filter={"width": 21}, wait=True)
    assert sum(tags is not None for tags in tags_of(client).values()) == 3


def test_a_dry_run_shows_and_writes_nothing(client: Client) -> None:
    preview = client.preview_tags("photos", [*WORDS, "yellow"])
    assert {word.word: word.count for word in preview.words} == {
        "red": 3, "green": 3, "blue": 3, "yellow": 0,
    }  # fmt: skip
    assert (preview.sampled, preview.total, preview.untagged) == (9, 9, 0)
    assert preview.words[0].examples[0].confidence >= 0.5
    assert set(map(str, tags_of(client).values())) == {"None"}
    assert client.collection("photos").fields == {}
    assert len(client.jobs()) == 1


def test_a_saved_vocabulary_tags_new_images(client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no vocabulary is saved"):
        client.saved_tags("photos")
    client.tag("photos", WORDS, save=True, wait=True)
    assert client.saved_tags("photos").vocabulary == WORDS
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "photos" / "new.png")
    client.index("photos", str(tmp_path / "photos"), wait=True)
    assert tags_of(client)["new.png"] == ["red"]
    client.index("photos", str(tmp_path / "photos"), label_from_folder=True, wait=True)
    assert tags_of(client)["new.png"] == ["red"], "a change of the label keeps the tags"
    client.forget_tags("photos")
    client.forget_tags("photos")
    Image.new("RGB", (9, 8), (255, 0, 0)).save(tmp_path / "photos" / "newer.png")
    client.index("photos", str(tmp_path / "photos"), wait=True)
    assert tags_of(client)["newer.png"] is None


def test_a_collection_of_one_image_and_one_of_none(client: Client, tmp_path: Path) -> None:
    client.create_collection("empty")
    assert client.tag("empty", WORDS, wait=True).total == 0
    assert client.preview_tags("empty", WORDS).sampled == 0
    client.index("one", str(tmp_path / "photos" / "red-0.png"), wait=True)
    assert client.tag("one", WORDS, wait=True).done == 1


def test_ten_thousand_words_are_taken_and_repeated_ones_count_once(client: Client) -> None:
    words = [f"word {n}" for n in range(9_996)] + ["red", " red ", "red", "r"]
    assert client.tag("photos", words, wait=True, min_confidence=0.9).state == "succeeded"
    assert tags_of(client)["red-0.png"] == ["red"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"vocabulary": []}, "at least 1"),
        ({"vocabulary": [" "]}, "vocabulary"),
        ({"vocabulary": ["x" * 300]}, "300"),
        ({"vocabulary": ["\0"]}, "NUL"),
        ({"vocabulary": ["w"] * 10_001}, "10000"),
        ({"vocabulary": ["a"], "min_confidence": "NaN"}, "min_confidence"),
        ({"vocabulary": ["a"], "min_confidence": 1.1}, "less than or equal to 1"),
        ({"vocabulary": ["a"], "template": "a photo"}, "template must contain"),
        ({"vocabulary": ["a"], "field": "embedding"}, "cannot name a field"),
        ({"vocabulary": ["a"], "filter": {"$nope": 1}}, "nope"),
        ({"vocabulary": [f"w{n}" for n in range(501)], "dry_run": True}, "500 words"),
    ],
)
def test_bad_requests(service: InProcess, body: dict[str, Any], reason: str) -> None:
    with service.http() as web:
        answer = web.post("/v1/collections/photos/tags", json=body)
    assert answer.status_code == 422, answer.text
    assert reason in answer.text


def test_a_field_of_another_type_is_refused(client: Client) -> None:
    client.create_collection("typed", fields={"tags": "string"})
    with pytest.raises(ProblemError, match="is string, not string") as refused:
        client.tag("typed", WORDS)
    assert refused.value.status == 409
    with pytest.raises(InvalidRequest):
        client.tag("typed", "red")


def test_metadata_that_is_no_list_is_kept_and_the_image_fails(client: Client) -> None:
    ids = sorted(client.iter_ids("photos"))
    client.update_images("photos", [{"id": ids[0], "metadata": {"tags": "mine"}}])
    job = client.tag("photos", WORDS, wait=True)
    assert (job.state, job.done, job.failed) == ("partial", 8, 1)
    assert "is no list of strings" in client.failures(job).failures[0].reason
    assert client.image("photos", ids[0]).metadata["tags"] == "mine"
    client.update_images("photos", [{"id": ids[0], "metadata": {"tags": None}}])
    retry = client.retry(job, wait=True)
    assert (retry.state, retry.task, retry.done) == ("succeeded", "tags", 1)


def test_own_vectors_of_a_model_that_nobody_has(client: Client) -> None:
    client.create_collection("own", model="somebody/else", dim=4)
    client.upsert("own", [{"id": "a", "values": np.ones(4)}])
    with pytest.raises(ProblemError, match="somebody/else") as refused:
        client.tag("own", WORDS)
    assert refused.value.status == 503


def test_a_collection_can_still_be_described_as_before(client: Client) -> None:
    client.create_collection("described", fields={"year": "int"})
    client.tag("described", WORDS, wait=True)
    assert client.create_collection("described", fields={"year": "int"}).fields == {
        "year": "int", "tags": "string[]",
    }  # fmt: skip


def test_the_command_line(service: InProcess, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("red\ngreen\n\n")
    tag = ("collections", "tag", "photos")
    dry = service.cli(*tag, "--vocabulary", str(file), "--vocabulary", "blue,yellow", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "0 of 9 images of the sample get no word; the job would look at 9" in dry.stdout
    done = service.cli(*tag, "--vocabulary", "red,green,blue", "--save", "--follow")
    assert done.returncode == 0, done.stderr
    assert service.cli(*tag, "--saved").stdout.split() == WORDS
    assert service.cli(*tag, "--forget").returncode == 0
    assert service.cli(*tag).returncode == 1
    assert "has no words" in service.cli(*tag, "--vocabulary", ",").stderr


def test_words_take_the_place_of_those_of_the_vocabulary_alone() -> None:
    rules = TagRules(vocabulary=("a", "b"), field="tags", min_confidence=0.5, template="{}")
    assert with_words(None, ["a"], rules) == ["a"]
    assert with_words(["b", "mine"], ["a"], rules) == ["mine", "a"]
    assert with_words(["mine", "a"], ["a"], rules) == ["mine", "a"]
    assert with_words("b", ["a"], rules) is None
    assert with_words([1], ["a"], rules) is None
