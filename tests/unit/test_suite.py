"""The rules of the test suite itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support import tiers

TESTS = Path(tiers.__file__).parents[1]
FOLDERS = {"unit", "contract", "integration", "acceptance", "chaos"}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_test_module_is_imported() -> None:
    files = list(TESTS.rglob("*.py"))
    assert len(files) > 100
    pairs = [(file.name, name) for file in files for name in imports(file)]
    assert [pair for pair in pairs if pair[1].partition(".")[0] in FOLDERS] == []


def test_every_test_lies_in_a_folder_that_has_a_tier() -> None:
    folders = {file.relative_to(TESTS).parts[0] for file in TESTS.rglob("test_*.py")}
    assert folders == FOLDERS == set(tiers.FOLDERS)


def test_every_line_of_the_full_tier_names_tests_that_exist() -> None:
    for line in tiers.FULL:
        path, _, test = line.partition("::")
        assert (TESTS / path).exists(), line
        assert not test or f"def {test.partition('[')[0]}" in (TESTS / path).read_text(), line
