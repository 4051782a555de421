"""Every file that docs/architecture.md, CONTRIBUTING.md, SECURITY.md or a decision names is in the
tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("docs/architecture.md", "CONTRIBUTING.md", "SECURITY.md")
DECISIONS = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
QUOTED = re.compile(r"`([^`\s]+)`")
NAMED_ENDING = re.compile(r"\.(py|lua|md|toml|yml|json|ipynb|txt)$")


def named_paths(text: str) -> set[str]:
    """What a document quotes as `code` and is a path below the root: a folder ends with a slash, a
    file has one of the endings of this repository."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    quoted = {path.partition("::")[0] for path in QUOTED.findall(prose)}
    paths = {path for path in quoted if "/" in path and "://" not in path and "*" not in path}
    return {path for path in paths if path.endswith("/") or NAMED_ENDING.search(path)}


def missing(text: str) -> list[str]:
    return sorted(path for path in named_paths(text) if not (ROOT / path).exists())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_named_file_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    assert len(named_paths(text)) > 5
    assert missing(text) == []


@pytest.mark.parametrize("decision", DECISIONS)
def test_every_file_that_a_decision_names_exists(decision: str) -> None:
    assert missing((ROOT / "docs" / "decisions" / decision).read_text()) == []


def test_a_file_that_is_gone_is_noticed() -> None:
    text = "See `common/settings.py`, `workers/arrivals.py`, `api/nowhere/` and `requeue`."
    assert missing(text) == ["api/nowhere/", "workers/arrivals.py"]


def test_every_named_function_exists() -> None:
    """Names in parentheses after a file, as in `api/auth/access.py` (`take_request`)."""
    text = (ROOT / "docs/architecture.md").read_text()
    pairs = re.findall(r"`(\S+\.(?:py|lua))` \(`(\w+)`", text)
    pairs += [(path, name) for name, path in re.findall(r"\(`(\w+)` in `(\S+\.py)`\)", text)]
    assert len(pairs) >= 3
    assert [pair for pair in pairs if pair[1] not in (ROOT / pair[0]).read_text()] == []


@pytest.mark.parametrize("walk", ["One image, from its folder", "One query, from words"])
def test_a_walk_passes_as_many_rooms_as_it_says(walk: str) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    (section,) = [part for part in text.split("\n## ") if part.startswith(walk)]
    assert "passes ten rooms" in section
    assert len({path.rpartition("/")[0] for path in named_paths(section)}) == 10
