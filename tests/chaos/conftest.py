from collections.abc import Iterator
from pathlib import Path

import pytest

from support import chaos, stack


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.many_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[stack.Up]:
    """One slow stack for all tests that leave it as they found it, however roughly they treat it;
    each has a collection of its own."""
    folder = tmp_path_factory.mktemp("slow")
    with stack.up(folder, tiny, **chaos.SLOW, **chaos.faults(folder)) as running:
        yield running
