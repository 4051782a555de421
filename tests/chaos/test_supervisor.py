"""The supervisor on small parts: which ones it gives up, and what a crash leaves."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clipfleet.common.errors import StartupError, Unavailable
from clipfleet.embedded import supervisor
from clipfleet.embedded.supervisor import Part, Supervisor, end_leftovers
from support import chaos, services


@pytest.fixture(autouse=True)
def _close_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", 0.01)


def part(program: str) -> Part:
    return Part("part", [sys.executable, "-c", program], {}, lambda _: True)


def watch_until_given_up(
    folder: Path, program: str, messages: list[str], ready: Callable[[int], bool]
) -> str:
    """Return the obituary of a part that keeps ending; fails when it is never given up."""
    stopping = threading.Event()
    give_up = threading.Timer(60, stopping.set)
    give_up.start()
    watched = Supervisor(folder, stopping)
    try:
        watched.start([Part("part", [sys.executable, "-c", program], {}, ready)])
        watched.wait(lambda *_: None)
        with pytest.raises(StartupError) as error:
            watched.watch(messages.append)
    finally:
        give_up.cancel()
        watched.stop()
    return error.value.detail


def ready_at_first() -> Callable[[int], bool]:
    """Return a readiness check that is true for the first process only."""
    first: list[int] = []

    def ready(pid: int) -> bool:
        first.append(pid)
        return pid == first[0]

    return ready


def test_a_part_that_dies_some_while_after_each_start_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit depends on whether a part was ever ready, not on how fast it dies.

    A worker that loads its model for ten seconds and then dies is no better than one that dies at
    once.
    """
    monkeypatch.setattr(supervisor, "MAX_PAUSE_S", 0.01)
    messages: list[str] = []
    program = "import time; time.sleep(0.3); print('out of luck', flush=True); raise SystemExit(3)"
    obituary = watch_until_given_up(tmp_path, program, messages, ready_at_first())
    assert "part keeps ending (exit code 3)" in obituary
    assert "out of luck" in obituary
    assert len(messages) == 1 + supervisor.MAX_DEATHS


def test_what_a_part_waits_for_is_told_while_it_starts(tmp_path: Path) -> None:
    reasons = ["Redis does not accept writes at the moment", ""]

    def ready(_: int) -> bool:
        if reasons and (reason := reasons.pop(0)):
            raise Unavailable(reason)
        return not reasons and len(reports) == 2

    reports: list[str] = []
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    watched = Supervisor(tmp_path, threading.Event())
    try:
        watched.start([Part("part", sleeper, {}, ready)])
        assert watched.wait(lambda label, _: reports.append(label))
    finally:
        watched.stop()
    assert reports == ["part: Redis does not accept writes at the moment", "part"]


def crashing_once_ready(folder: Path) -> tuple[str, Callable[[int], bool]]:
    """Return a program that ends once its readiness was checked, and that check."""

    def ready(pid: int) -> bool:
        (folder / str(pid)).touch()
        return True

    wait = f"while not os.path.exists({str(folder)!r} + '/' + str(os.getpid())): time.sleep(0.01)"
    return f"import os, time\n{wait}\nraise SystemExit(3)", ready


def test_a_part_that_keeps_crashing_at_its_work_is_given_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few images can kill a worker several times each before they are quarantined."""
    monkeypatch.setattr(supervisor, "MAX_PAUSE_S", 0.01)
    monkeypatch.setattr(supervisor, "MAX_CRASHES", 12)
    messages: list[str] = []
    program, ready = crashing_once_ready(tmp_path)
    assert "keeps ending" in watch_until_given_up(tmp_path, program, messages, ready)
    assert len(messages) == 12


def test_a_part_that_is_killed_while_it_starts_is_not_one_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a start is slow, and another process may kill the part for a while."""
    monkeypatch.setattr(supervisor, "MAX_KILLS", 8)
    monkeypatch.setattr(supervisor, "MAX_PAUSE_S", 0.01)
    messages: list[str] = []
    program = "import os; os.kill(os.getpid(), 9)"
    obituary = watch_until_given_up(tmp_path, program, messages, ready_at_first())
    assert "part keeps ending (signal 9)" in obituary
    assert len(messages) == 1 + 8 > supervisor.MAX_DEATHS


def test_a_part_that_is_set_up_wrongly_says_so_in_one_line(tmp_path: Path) -> None:
    program = "print('noise\\nthere is no such model', flush=True); raise SystemExit(78)"
    watched = Supervisor(tmp_path, threading.Event())
    never = Part("part", [sys.executable, "-c", program], {}, lambda _: False)
    watched.start([never])
    with pytest.raises(StartupError) as error:
        watched.wait(lambda *_: None)
    watched.stop()
    assert error.value.detail == "part ended before all parts were ready: there is no such model"


def test_a_part_that_ran_well_in_between_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FORGET_CRASHES_AFTER_S", 0.0)
    monkeypatch.setattr(supervisor, "MAX_CRASHES", 2)
    monkeypatch.setattr(supervisor, "MAX_PAUSE_S", 0.01)
    stopping, messages = threading.Event(), []

    def hear(text: str) -> None:
        messages.append(text)
        if len(messages) > 8:
            stopping.set()

    program, ready = crashing_once_ready(tmp_path)
    watched = Supervisor(tmp_path, stopping)
    try:
        watched.start([Part("part", [sys.executable, "-c", program], {}, ready)])
        watched.wait(lambda *_: None)
        watched.watch(hear)
    finally:
        watched.stop()
    assert len(messages) > 8


def listed(folder: Path, pid: int, created: float) -> None:
    """Write the list of children that a supervisor of this folder writes."""
    content = {"folder": folder.stat().st_ino, "children": [[pid, created]]}
    (folder / "children.json").write_text(json.dumps(content))


def test_leftovers_are_gone_when_their_end_is_reported_deaf_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leftovers hold locks and ports that the new parts need."""
    monkeypatch.setattr(supervisor, "STOP_S", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program = f"{deaf}; print('deaf', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as leftover:
        assert leftover.stdout is not None
        assert leftover.stdout.readline() == b"deaf\n"
        process = psutil.Process(leftover.pid)
        listed(tmp_path, leftover.pid, process.create_time())
        end_leftovers(tmp_path)
        assert chaos.still_running([process]) == []


def test_a_stranger_with_a_leftovers_number_is_let_live(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        try:
            created = psutil.Process(stranger.pid).create_time()
            listed(tmp_path, stranger.pid, created - 3600)
            end_leftovers(tmp_path)
            assert stranger.poll() is None

            listed(tmp_path, stranger.pid, created)
            copy = shutil.copytree(tmp_path, tmp_path / "copy")
            end_leftovers(copy)
            assert stranger.poll() is None, "it is of the stack whose folder was copied"
        finally:
            stranger.kill()


def test_a_list_of_children_cut_short_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "children.json").write_text("[[12")
    end_leftovers(tmp_path)


def test_a_part_stopped_with_sigstop_still_ends_with_the_stack(tmp_path: Path) -> None:
    others = psutil.Process().children()
    watched = Supervisor(tmp_path, threading.Event())
    watched.start([part("import time; time.sleep(600)")])
    watched.wait(lambda *_: None)
    (child,) = [process for process in psutil.Process().children() if process not in others]
    child.suspend()
    services.eventually(lambda: child.status() == psutil.STATUS_STOPPED, 10, "the stop")
    watched.stop()
    assert chaos.still_running([child]) == []
