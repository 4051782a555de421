"""Mirrors through every history: at its end each collection is what its folders are."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from support.mirror_histories import Histories


def test_every_history_ends_with_the_folders_in_the_index() -> None:
    some = settings(
        max_examples=60,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Histories, settings=some)
