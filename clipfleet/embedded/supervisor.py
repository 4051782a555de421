"""Starts child processes in groups, restarts them with backoff, and ends them in reverse order."""

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from clipfleet.common.errors import StartupError, Unavailable

LOG_LINES = 15
MAX_DEATHS = 5  # in a row, of a part that was not ready in between
MAX_KILLS = 20  # the same, by signals, such as the kernel's when memory is short
DESCENDANTS_S = 3.0  # for processes that parts have started
MAX_CRASHES = 300  # of a part that was ready: each image that kills workers costs three
FORGET_CRASHES_AFTER_S = 60.0  # without a crash, their count begins again
MAX_PAUSE_S = 8.0
STOP_S = 25.0
POLL_S = 0.1
NICENESS = 10  # a tenth of the weight of a process with 0
MAX_NICENESS = 19
NICENESS_STEP = 1.25  # each number more divides the weight by it (sched(7))
LOWER_TRIES, LOWER_PAUSE_S = 20, 0.1


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    Attributes:
        name: name of the log file and in messages.
        command: command line.
        env: variables that are added to the environment.
        ready: says for a process id whether the part answers. May raise while it does not;
            Unavailable tells what the part waits for.
        niceness: its nice value, from 0 (as usual) to MAX_NICENESS.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[int], bool]
    niceness: int = 0


@dataclass
class _Child:
    part: Part
    process: "subprocess.Popen[bytes]"
    started_at: float
    group: int
    served: bool = False
    deaths: int = 0
    kills: int = 0
    crashes: int = 0
    restart_at: float = 0.0
    reason: str = ""

    def count_death(self, *, quiet: bool) -> None:
        """Count an exit. A part that a signal kills while it starts gets more attempts."""
        if self.served:
            self.deaths = self.kills = 0
            self.crashes = 1 if quiet else self.crashes + 1
        elif self.process.returncode < 0:
            self.kills += 1
        else:
            self.deaths += 1

    @property
    def label(self) -> str:
        """The name of the part, and what it waits for."""
        return f"{self.part.name}: {self.reason}" if self.reason else self.part.name

    @property
    def hopeless(self) -> bool:
        return self.deaths > MAX_DEATHS or self.kills > MAX_KILLS or self.crashes > MAX_CRASHES


class Supervisor:
    """Starts, watches and stops parts.

    Args:
        folder: gets a log for each part, and the list of children for `end_leftovers`.
        stopping: set to end `wait` and `watch`.
    """

    def __init__(self, folder: Path, stopping: threading.Event) -> None:
        self._logs, self._list = folder / "logs", folder / "children.json"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._stopping = stopping
        self._children: list[_Child] = []

    def start(self, parts: Sequence[Part]) -> None:
        """Start a group of parts, which later groups depend on. Does not wait for them."""
        group = 1 + max((child.group for child in self._children), default=0)
        for part in parts:
            self._children.append(_Child(part, self._spawn(part), time.monotonic(), group))
        self._write_list()

    def wait(self, waiting: Callable[[str, float], None]) -> bool:
        """Wait until all parts are ready.

        Args:
            waiting: called with a part that is not ready, and the seconds since its start.

        Returns:
            False if `stopping` was set meanwhile.

        Raises:
            StartupError: a part ended. The message has the last lines of its log.
        """
        for child in self._children:
            while not self._is_ready(child):
                if self._stopping.wait(POLL_S):
                    return False
                self._require_alive()
                waiting(child.label, time.monotonic() - child.started_at)
            child.served = True
        return True

    def watch(self, report: Callable[[str], None]) -> None:
        """Restart parts that end, until `stopping` is set. StartupError if one keeps ending."""
        while not self._stopping.wait(POLL_S):
            for child in self._children:
                if child.process.poll() is not None:
                    self._revive(child, report)
                elif not child.served:
                    child.served = self._is_ready(child)

    def stop(self) -> None:
        """End the groups, the last one first, so that no part loses what it depends on.

        A part that does not end within STOP_S is killed. So is what parts have started and what
        does not end by itself shortly after: feeders, and the server that forks them.
        """
        started = [each for child in self._children for each in _descendants(child.process.pid)]
        for number in sorted({child.group for child in self._children}, reverse=True):
            group = [child.process for child in self._children if child.group == number]
            for process in group:
                _terminate(process)
            for process in group:
                _end(process)
        for remaining in psutil.wait_procs(started, timeout=DESCENDANTS_S)[1]:
            with suppress(psutil.NoSuchProcess):
                remaining.kill()
        self._list.unlink(missing_ok=True)

    def _revive(self, child: _Child, report: Callable[[str], None]) -> None:
        now = time.monotonic()
        if not child.restart_at:
            child.count_death(quiet=now - child.started_at > FORGET_CRASHES_AFTER_S)
            if child.hopeless:
                raise StartupError(self._exit_report(child, "keeps ending"))
            pause = min(0.25 * 2**child.deaths, MAX_PAUSE_S)
            child.restart_at = now + pause
            code = child.process.returncode
            report(
                f"{child.part.name} ended ({_exit_cause(code)}); it starts again in {pause:.1f} s"
            )
        elif now >= child.restart_at:
            child.process, child.started_at = self._spawn(child.part), now
            child.restart_at, child.served = 0.0, False
            self._write_list()

    def _spawn(self, part: Part) -> "subprocess.Popen[bytes]":
        log = self._logs / f"{part.name}.log"
        if log.exists() and log.stat().st_size > 10_000_000:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as out:
            process = subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **part.env},
                start_new_session=True,  # only this process gets Ctrl-C, and ends parts in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        if part.niceness:
            _lower_priority(process.pid, part.niceness)
        return process

    def _require_alive(self) -> None:
        for child in self._children:
            if child.process.poll() is not None:
                raise StartupError(self._exit_report(child, "ended before all parts were ready"))

    def _is_ready(self, child: _Child) -> bool:
        child.reason = ""
        try:
            return child.part.ready(child.process.pid)
        except Unavailable as error:
            child.reason = error.detail
        except Exception:  # it does not answer yet
            return False
        return False

    def _exit_report(self, child: _Child, what: str) -> str:
        log, name = self._logs / f"{child.part.name}.log", child.part.name
        with log.open(errors="replace") as lines:
            last = list(deque(lines, LOG_LINES))
        code = child.process.poll()
        if code == os.EX_CONFIG and last:  # the last line of a part says what to configure
            return f"{name} {what}: {last[-1].strip()}"
        shown = "".join(f"  {line}" for line in last).rstrip()
        return f"{name} {what} ({_exit_cause(code)}). Its last lines, from {log}:\n{shown}"

    def _write_list(self) -> None:
        alive = []
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                alive.append([child.process.pid, psutil.Process(child.process.pid).create_time()])
        whole = self._list.with_suffix(".new")  # a crash while writing leaves the old list
        with suppress(OSError):  # on a full disk, too
            listed = {"folder": self._list.parent.stat().st_ino, "children": alive}
            whole.write_text(json.dumps(listed))
            whole.replace(self._list)


def end_leftovers(folder: Path) -> None:
    """End the children of a supervisor that was killed before it ended them."""
    processes = []
    for pid, created in _listed(folder):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if abs(process.create_time() - created) < 1:  # not another process with the same id
                process.terminate()
                processes.append(process)
    _, remaining = psutil.wait_procs(processes, timeout=STOP_S)
    for process in remaining:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=STOP_S)  # they hold locks on files that the new parts open


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _listed(folder: Path) -> list[tuple[int, float]]:
    """Children of this very folder. The copy of a folder names the children of another stack."""
    try:
        listed = json.loads((folder / "children.json").read_text())
        if listed["folder"] != folder.stat().st_ino:
            return []
        return [(pid, created) for pid, created in listed["children"]]
    except (OSError, ValueError, TypeError):
        return []


def _terminate(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)  # a stopped process does not handle SIGTERM
        process.terminate()


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _exit_cause(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def bulk_niceness(parts: int) -> int:
    """The nice value with which several parts together have the weight of one with NICENESS."""
    return min(MAX_NICENESS, NICENESS + round(math.log(parts, NICENESS_STEP)))


def _lower_priority(pid: int, niceness: int) -> None:
    """Give a process less of the processor while others are busy, and all of it otherwise.

    Linux shares the processor between sessions first, and each part is a session (sched(7), "The
    autogroup feature"): the nice value of a process counts only within its session. Users who are
    not root may change the value of one session in a tenth of a second: EAGAIN otherwise.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    for _ in range(LOWER_TRIES):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
            return
        except BlockingIOError:
            time.sleep(LOWER_PAUSE_S)
        except OSError:  # it has ended, or this kernel has no such groups
            return


def _die_with_parent() -> None:
    """Get SIGTERM when the supervisor ends, however it ends (Linux: prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
