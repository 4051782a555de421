"""Mirrors and migrations on the Milvus server, with parts that end."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from clipfleet.common.store import Store
from support.migration_histories import Migrating
from support.mirror_histories import Histories
from support.services import Milvus

pytestmark = pytest.mark.server
# The same histories every time: which ones are possible is looked for with the store in memory.
SOME = settings(
    max_examples=3, stateful_step_count=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate],
)  # fmt: skip


@pytest.fixture
def store(milvus_server: Milvus) -> Store:
    return milvus_server.store()


def test_every_history_of_a_migration_loses_and_mixes_nothing(store: Store) -> None:
    class OnTheServer(Migrating):
        def __init__(self) -> None:
            super().__init__(store)

    run_state_machine_as_test(OnTheServer, settings=SOME)


def test_every_history_of_mirrors_ends_with_the_folders_in_the_index(store: Store) -> None:
    class OnTheServer(Histories):
        def __init__(self) -> None:
            super().__init__(store)

    run_state_machine_as_test(OnTheServer, settings=SOME)
