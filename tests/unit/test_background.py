"""Places of chunks in the background of a worker."""

import threading
from collections.abc import Iterator

import pytest

from clipfleet.workers.ingest.background import Background, Waits
from support.services import eventually


class Chunks:
    """Chunks that run until `over` is set. `waits` holds the function that each received."""

    def __init__(self) -> None:
        self.over, self.waits = threading.Event(), list[Waits]()

    def __call__(self, waits: Waits) -> None:
        self.waits.append(waits)
        assert self.over.wait(60)

    def begun(self, count: int) -> None:
        eventually(lambda: len(self.waits) == count, 30, f"{count} chunks")


@pytest.fixture
def chunks() -> Iterator[Chunks]:
    created = Chunks()
    yield created
    created.over.set()


def test_a_chunk_that_only_waits_takes_no_place(chunks: Chunks) -> None:
    background, freed = Background(2), list[str]()
    for name in "ab":
        assert background.has_room
        background.start(chunks, lambda name=name: freed.append(name))  # type: ignore[misc]
    chunks.begun(2)
    assert not background.has_room
    chunks.waits[0](True)
    assert background.has_room
    chunks.waits[1](True)
    assert len(freed) == 1, "the second place was not needed"
    for waits in chunks.waits:
        waits(False)
    assert not background.has_room
    assert not background.wait(0)


def test_the_place_of_a_chunk_that_has_ended_is_free(chunks: Chunks) -> None:
    background = Background(1)
    background.start(chunks)
    assert not background.has_room
    chunks.over.set()
    assert background.wait(30)
    assert background.has_room


def test_an_error_of_a_chunk_frees_its_place(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Waits) -> None:
        raise KeyError("x")

    background = Background(1)
    background.start(broken)
    assert background.wait(30)
    assert background.has_room
    assert "a chunk in the background failed" in caplog.text
