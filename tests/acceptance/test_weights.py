"""Other weights in the folder of a model: a real stack, before and after."""

from pathlib import Path

import pytest

from clipfleet import InvalidRequest
from support import models, stack


def test_a_stack_with_other_weights_in_the_folder_of_its_model_mixes_nothing(
    tmp_path: Path, flickr: list[Path]
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    folder = models.tiny_clip(tmp_path / "model")
    stack.photos(tmp_path / "photos", flickr, 3)
    more = stack.photos(tmp_path / "more", flickr, 4)
    data, weights = tmp_path / "data", folder / "model.safetensors"
    with stack.up(data, folder) as running, running.client() as client:
        client.create_collection("photos")
        job = client.index("photos", str(tmp_path / "photos"))
        assert stack.finished(client, job.id).done == 3
        (expected,) = client.search("photos", text="a dog", top_k=1).matches
    before = load_file(weights)
    torch.manual_seed(1)
    other = {
        name: torch.randn_like(part) / 10
        for name, part in before.items()
        if part.is_floating_point()
    }
    save_file({**before, **other}, weights, {"format": "pt"})
    with stack.up(data, folder) as running, running.client() as client:
        with pytest.raises(InvalidRequest, match="Put the old weights back"):
            client.search("photos", text="a dog", top_k=1)
        job = client.index("photos", str(tmp_path / "more"))
        ended = stack.finished(client, job.id)
        assert (ended.state, ended.done) == ("cancelled", 0)
        assert "a folder of another name" in str(ended.error)
        (same,) = client.search("photos", id=expected.id, top_k=1).matches
        assert same.id == expected.id
        doctor = running.cli("doctor")
        assert doctor.returncode
        assert "has other weights than those with which photos was made" in doctor.stdout
        assert client.create_collection("anew", model=str(folder))
        job = client.index("anew", str(tmp_path / "more"))
        assert stack.finished(client, job.id).done == len(more)
    save_file(before, weights, {"format": "pt"})
    with stack.up(data, folder) as running, running.client() as client:
        (again,) = client.search("photos", text="a dog", top_k=1).matches
        assert again.id == expected.id
        with pytest.raises(InvalidRequest, match="Put the old weights back"):
            client.search("anew", text="a dog", top_k=1)
