"""Ctrl-C in the middle of a run of the tests leaves no process and no folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support import chaos, services

ROOT = Path(__file__).parents[2]


def descendants(pid: int, name: str) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if child.name() == name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays(number: signal.Signals, tmp_path: Path) -> None:
    suite = [sys.executable, "-m", "pytest", "-q", "-n", "1", "tests/contract/test_ledger.py"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            suite, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        services.eventually(lambda: descendants(run.pid, "valkey-server"), 120, "a Valkey")
        family = psutil.Process(run.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # a terminal sends it to all of them
        else:
            run.send_signal(number)
        assert run.wait(120) == pytest.ExitCode.INTERRUPTED, (tmp_path / "log").read_text()
    finally:
        run.kill()
        run.wait()
    services.eventually(lambda: not chaos.still_running(family), 30, "the end of all processes")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
