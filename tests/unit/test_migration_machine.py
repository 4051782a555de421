"""A migration, with writes and deletions going on and parts that end at every step."""

from hypothesis import HealthCheck, Phase, settings

from support.migration_histories import Migrating

TestMigrating = Migrating.TestCase
TestMigrating.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate, Phase.shrink],
)  # fmt: skip
