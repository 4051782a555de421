"""What tells the weights of a model folder from others, and what depends on it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfleet.common.collection import Collection, weights_problem
from clipfleet.workers.embedding.layout import BLOCK, BLOCKS, weights_id
from support.gateway_harness import World

LARGE = BLOCK * BLOCKS * 3 + 17


def model(folder: Path, weights: bytes, name: str = "model.safetensors") -> str:
    folder.mkdir(exist_ok=True)
    config = "open_clip_config.json" if name.startswith("open_clip") else "config.json"
    (folder / config).write_text("{}")
    (folder / name).write_bytes(weights)
    return str(folder)


def test_the_same_weights_are_the_same_in_every_folder(tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", b"w" * 100), model(tmp_path / "b", b"w" * 100)
    assert weights_id(first) == weights_id(second)
    assert len(weights_id(first)) == 16
    Path(second, "config.json").write_text('{"changed": 1}')
    Path(second, "training_args.bin").write_bytes(b"of a training")
    Path(second, "pytorch_model.bin").write_bytes(b"not read beside safetensors")
    assert weights_id(first) == weights_id(second)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    ],
)
def test_other_weights_of_the_same_size_are_others(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "a", b"w" * 100, name)
    before = weights_id(folder)
    model(tmp_path / "a", b"w" * 50 + b"v" + b"w" * 49, name)
    assert before != weights_id(folder) != ""


@given(size=st.integers(1, 5 * BLOCK), at=st.integers(0, 5 * BLOCK))
def test_every_byte_of_a_small_file_counts(
    tmp_path_factory: pytest.TempPathFactory, size: int, at: int
) -> None:
    weights = bytearray(size)
    folder = model(tmp_path_factory.getbasetemp() / "small", bytes(weights))
    before = weights_id(folder)
    weights[at % size] = 1
    model(Path(folder), bytes(weights))
    assert weights_id(folder) != before


@pytest.mark.parametrize("start", [0, LARGE // 2, LARGE - 3 * BLOCK])
def test_a_large_file_is_seen_to_change_anywhere(tmp_path: Path, start: int) -> None:
    """A sample of 4 KiB in each 12 KiB: a change of 12 KiB is seen wherever it is."""
    weights = bytearray(LARGE)
    before = weights_id(model(tmp_path / "a", bytes(weights)))
    weights[start : start + 3 * BLOCK] = b"x" * (3 * BLOCK)
    assert weights_id(model(tmp_path / "a", bytes(weights))) != before


def test_models_that_are_in_no_folder_of_the_user_have_none(tmp_path: Path) -> None:
    for name in ("clipfleet-mini", "hash:64", "openai/clip-vit-base-patch32", "hf-hub:a/b"):
        assert weights_id(name) == ""
    assert weights_id(str(tmp_path)) == ""


def test_what_is_not_known_is_no_problem() -> None:
    options = {"metric": "cosine", "model": "/models/m", "dim": 4, "fields": {}}
    old = Collection.new("c", **options)  # type: ignore[arg-type]
    new = Collection.new("c", **options, weights_id="aa")  # type: ignore[arg-type]
    assert weights_problem(old, "aa") is weights_problem(new, "") is weights_problem(new, "aa")
    assert weights_problem(new, "aa") is None
    problem = weights_problem(new, "bb")
    assert problem
    assert "'/models/m'" in problem
    assert "'c'" in problem
    assert "clipfleet collections migrate c --model FOLDER" in problem
    of_the_release_before = new.model_dump_json(exclude={"weights_id"})
    assert Collection.model_validate_json(of_the_release_before).weights_id == ""


def test_a_collection_remembers_the_weights_of_the_worker(tmp_path: Path) -> None:
    world = World(tmp_path)
    (card,) = world.parts.fleet.alive()
    world.parts.fleet.announce(card.model_copy(update={"weights_id": "aa"}))
    body = {"metric": "dot", "model": "m"}
    created = world.ask("PUT /v1/collections/new", "admin", json=body)
    assert created.status_code == 201
    assert "weights_id" not in created.json()
    collection = world.parts.catalogue.find("new")
    assert collection
    assert collection.weights_id == "aa"
    world.parts.fleet.announce(card.model_copy(update={"weights_id": "bb"}))
    assert world.ask("PUT /v1/collections/new", "admin", json=body).status_code == 200
    assert world.parts.catalogue.find("new") == collection
