"""`CLIPFLEET_MODEL=hash:64`: a model for tests, named for what it is."""

import pytest

from clipfleet.common.errors import StartupError
from clipfleet.common.imaging.embedder import HashEmbedder


def test_the_name_gives_the_length_of_an_embedding() -> None:
    embedder = HashEmbedder.named("hash:64")
    assert embedder.embed_texts(["a", "b"]).shape == (2, 64)
    assert HashEmbedder.named("hash:8", batch=5).batch == 5


@pytest.mark.parametrize("name", ["hash:", "hash:x", "hash:1", "hash:0", "hash:4097", "hash:64 "])
def test_another_name_is_refused_with_what_to_write(name: str) -> None:
    with pytest.raises(StartupError, match="hash:64"):
        HashEmbedder.named(name)
