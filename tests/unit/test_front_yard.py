"""The files around the code: workflows, forms, hooks, the package's metadata, the changelog."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipfleet import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
OTHERS = [ROOT / ".github" / "dependabot.yml", ROOT / ".pre-commit-config.yaml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def document(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS, *OTHERS], ids=lambda path: path.name)
def test_it_is_yaml(path: Path) -> None:
    assert document(path)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_bounds_and_runs_targets_that_exist(path: Path) -> None:
    workflow = document(path)
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        commands = [step["run"] for step in job["steps"] if "run" in step]
        called = re.findall(r"^make ([a-z-]+)", "\n".join(commands), re.MULTILINE)
        assert set(called) <= set(targets)


def test_the_tests_run_on_every_python_that_the_package_claims() -> None:
    (tests,) = (document(path) for path in WORKFLOWS if path.name == "tests.yml")
    prefix = "Programming Language :: Python :: 3."
    claimed = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if prefix in line]
    assert tests["jobs"]["fast"]["strategy"]["matrix"]["python"] == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_the_release_is_published_without_a_token() -> None:
    (release,) = (document(path) for path in WORKFLOWS if path.name == "release.yml")
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()


def test_the_dev_container_is_json() -> None:
    assert json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())["image"]


def test_the_changelog_has_this_version_and_known_headings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    assert __version__ in dict(versions)
    assert all(date for version, date in versions[1:])
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert [version for version, _ in versions] == re.findall(r"^\[(.+?)\]: http", text, re.M)
