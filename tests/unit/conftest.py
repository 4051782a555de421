from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.worker_harness import Planning, Workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    with ThreadPoolExecutor(4) as threads:
        yield Workplace(tmp_path, threads)


@pytest.fixture
def planning() -> Planning:
    return Planning()
