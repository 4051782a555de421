"""A real kernel executes the notebook on either kind of images; its own assertions hold."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from support.models import data
from support.stack import Up

NOTEBOOK = Path(__file__).parents[2] / "examples" / "build_image_search.ipynb"


def executed(service: Up, images: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the notebook and return all that its cells print; fails where a cell fails."""
    monkeypatch.setenv("CLIPFLEET_URL", service.url)
    monkeypatch.setenv("IMAGES", images)
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbclient.NotebookClient(notebook, timeout=300).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs if out.output_type == "stream")


def test_on_the_carried_images(
    carried_stack: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = executed(carried_stack, "", tmp_path, monkeypatch)
    assert "same images" in output
    assert "succeeded" in output


def test_on_imagenette(carried_stack: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tmp_path / "few"
    for folder in sorted((data("imagenette2-224") / "val").iterdir()):
        (few / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:12]:
            (few / folder.name / photo.name).symlink_to(photo)
    output = executed(carried_stack, str(few), tmp_path, monkeypatch)
    assert "120 images in 10 folders" in output
    assert "same images" in output


def test_it_is_committed_with_its_pictures_and_without_anything_of_this_machine() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells  # type: ignore[no-untyped-call]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    assert sum("image/jpeg" in out.get("data", {}) for out in outputs) >= 4
    assert not [out for out in outputs if out.output_type == "error"]
    text = NOTEBOOK.read_text()
    assert "/home/" not in text
    assert "site-packages" not in text
