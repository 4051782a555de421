"""Divides the tests into those of `make test` and the rest of `make test-all`."""

from collections.abc import Sequence

import pytest

# The full tier: proofs that take long or need more than PyPI brings. All others are the fast tier.
# A line is the beginning of a test's path below tests/. Tests marked `server` belong to it, too.
FULL = (
    "chaos/",
    "acceptance/test_backup.py",
    "acceptance/test_carried_model.py::test_captions_find_their_photos",
    "acceptance/test_carried_model.py::test_photos_are_named_by_their_nearest_prompt",
    "acceptance/test_demo.py",
    "acceptance/test_docs.py",
    "acceptance/test_flower.py",
    "acceptance/test_fuzz.py::test_every_answer_of_the_real_stack_is_one",
    "acceptance/test_guides.py",
    "acceptance/test_notebook.py",
    "acceptance/test_page_access.py",
    "acceptance/test_page_troubles.py",
    "acceptance/test_parts.py",
    "acceptance/test_settings.py",
    "acceptance/test_weights.py",
    "integration/test_compiled.py::test_a_compiled_model_gives",  # 20 s of a C++ compiler
    "integration/test_interrupt.py",
    "integration/test_same_as_processor.py",
    "integration/test_sentinels.py",
    "unit/test_maps.py::test_pacmap",
)

# Fixtures that start a whole stack. pytest-xdist runs the tests of a group in one process, so that
# each of these stacks is started once. All other tests are grouped by file.
STACKS = ("slow_stack", "carried_stack", "service")

# Groups that take longest begin first: no process is left alone with a long one at the end.
FOLDERS = ("chaos", "acceptance", "contract", "integration", "unit")


def assign(items: list[pytest.Item]) -> None:
    """Mark each test with its tier and its group, and order them."""
    for item in items:
        if _path(item).startswith(FULL) or item.get_closest_marker("server"):
            item.add_marker("full")
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_turn)


def _path(item: pytest.Item) -> str:
    return item.nodeid.removeprefix("tests/")


def _group(item: pytest.Item) -> str:
    if item.get_closest_marker("server"):
        return "server"
    fixtures: Sequence[str] = getattr(item, "fixturenames", ())
    return next((stack for stack in STACKS if stack in fixtures), _path(item).partition("::")[0])


def _turn(item: pytest.Item) -> int:
    first, group = ("server", *STACKS), _group(item)
    if group in first:
        return first.index(group)
    return len(first) + FOLDERS.index(group.partition("/")[0])
