"""A real kernel executes the notebook on either kind of images; its own assertions hold."""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import nbclient
import nbformat
import pytest

from support.models import data
from support.stack import Up

SAMPLES = Path(str(files("clipfleet"))) / "samples"
NOTEBOOK = Path(__file__).parents[2] / "examples" / "build_image_search.ipynb"


@pytest.fixture
def stack(carried_stack: Up) -> Iterator[Up]:
    """The stack, without the collections of the notebook at the end."""
    with carried_stack.client() as client:
        before = {collection.name for collection in client.collections()}
        yield carried_stack
        for collection in client.collections():
            if collection.name not in before:
                client.delete_collection(collection.name)


def names(stack: Up) -> set[str]:
    with stack.client() as client:
        listed = {collection.name for collection in client.collections()}
    return {name for name in listed if name.startswith(("tutorial", "gallery"))}


def executed(
    service: Up, images: str, folder: Path, monkeypatch: pytest.MonkeyPatch, first: str = ""
) -> str:
    """Run the notebook and return all that its cells print; fails where a cell fails.

    `first` is the code of a cell before all others. Nobody answers questions.
    """
    monkeypatch.setenv("CLIPFLEET_URL", service.url)
    monkeypatch.setenv("IMAGES", images)
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=300).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs if out.output_type == "stream")


def test_on_the_carried_images(stack: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = executed(stack, "", tmp_path, monkeypatch)
    assert "lion.png" in output
    assert "same images" in output
    assert "succeeded" in output
    assert "kept: gallery, tutorial" in output
    assert names(stack) == {"gallery", "tutorial"}


def test_on_imagenette(stack: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tmp_path / "few"
    for folder in sorted((data("imagenette2-224") / "val").iterdir()):
        (few / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:12]:
            (few / folder.name / photo.name).symlink_to(photo)
    output = executed(stack, str(few), tmp_path, monkeypatch)
    assert "120 images in 10 folders" in output
    assert "one of the 'English springer'" in output
    assert "a church: church" in output
    assert "same images" in output
    assert re.findall(r"n\d{8}(?!_)", output) == []  # names of files begin like this, too


@pytest.mark.parametrize("answer", ["n", "y"])
def test_it_deletes_nothing_without_a_yes(
    stack: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    (tmp_path / "images" / "animals").mkdir(parents=True)
    for photo in sorted((SAMPLES / "animals").iterdir())[:8]:
        (tmp_path / "images" / "animals" / photo.name).symlink_to(photo)
    (tmp_path / "images" / "food").mkdir()
    for photo in sorted((SAMPLES / "food").iterdir())[:8]:
        (tmp_path / "images" / "food" / photo.name).symlink_to(photo)
    with stack.client() as client:
        client.create_collection("tutorial", metric="dot")
    answers = f"def input(question):\n    print(question)\n    return {answer!r}"
    output = executed(stack, str(tmp_path / "images"), tmp_path, monkeypatch, answers)
    assert "There is a collection 'tutorial'. Delete it" in output
    if answer == "y":
        assert "Delete the collections of this notebook (gallery, tutorial)?" in output
        assert names(stack) == set()
    else:
        assert names(stack) == {"gallery", "tutorial", "tutorial-2"}
        with stack.client() as client:
            assert client.collection("tutorial").metric == "dot"


def test_it_is_committed_with_its_pictures_and_without_anything_of_this_machine() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells  # type: ignore[no-untyped-call]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    assert sum("image/jpeg" in out.get("data", {}) for out in outputs) >= 4
    assert not [out for out in outputs if out.output_type == "error"]
    text = NOTEBOOK.read_text()
    assert "/home/" not in text
    assert "site-packages" not in text
