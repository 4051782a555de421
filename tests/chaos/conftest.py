from collections.abc import Iterator
from pathlib import Path

import pytest

from support import chaos

QUICK_COMPLAINTS = {"clipfleet.workers.planner.readers:HANG_AFTER_S": 1.0}
# From servers of the tests' own, which may never answer.
PATIENT_FETCHING = {
    "CLIPFLEET_FETCH__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    "CLIPFLEET_FETCH__READ_S": "600",
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chaos.many_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def slow_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chaos.Up]:
    """One stack for all tests that leave it as they found it, however roughly they treat it; each
    has a collection of its own."""
    constants = {**chaos.CONSTANTS, **QUICK_COMPLAINTS}
    folder = tmp_path_factory.mktemp("slow")
    with chaos.up(folder, constants=constants, **PATIENT_FETCHING) as running:
        yield running
