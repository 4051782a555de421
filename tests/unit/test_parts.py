"""`clipfleet gateway`, `planner` and `worker` replace their process by the part that they name."""

import os
import sys

import pytest
from typer.testing import CliRunner

from clipfleet.cli import app, parts


class Became(Exception):
    pass


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line that would have replaced this process."""
    seen: list[str] = []

    def execv(program: str, command: list[str]) -> None:
        assert program == sys.executable
        seen.extend(command)
        raise Became

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setenv("CLIPFLEET_MODEL", "another")  # put back afterwards
    return seen


def ran(*args: str) -> None:
    result = CliRunner().invoke(app, args)
    assert isinstance(result.exception, Became), result.output


def test_a_worker_serves_both_lanes_of_its_model(became: list[str]) -> None:
    ran("worker", "--model", "clipfleet-mini")
    assert became[became.index("-Q") + 1] == "ingest.clipfleet-mini,query.clipfleet-mini"
    assert os.environ["CLIPFLEET_MODEL"] == "clipfleet-mini"


def test_or_those_it_is_told(became: list[str]) -> None:
    ran("worker", "--lane", "query", "--model", "clipfleet-mini")
    assert became[became.index("-Q") + 1] == "query.clipfleet-mini"
    assert became[became.index("-n") + 1] == f"worker-query-{os.getpid()}@%h"


def test_a_gateway_listens_where_it_is_told(became: list[str]) -> None:
    ran("gateway", "--host", "::1", "--port", "8123")
    assert became[-4:] == ["--host", "::1", "--port", "8123"]


def test_what_is_missing_is_named_with_what_brings_it(
    became: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        parts.planner()
    assert ended.value.code == 1
    assert "pip install 'clipfleet[api]'" in capsys.readouterr().err
    assert not became
