"""Child processes: started in groups, restarted with backoff, ended in reverse; none stays."""

import ctypes
import json
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
MOST_DEATHS = 5  # one after the other, without having been ready in between
MOST_KILLS = 20  # the same, by signals: where memory is short, the kernel's
MOST_CRASHES = 300  # of a part that was ready: each image that kills workers costs three
QUIET_S = 60.0  # after so long without one, crashes are forgotten
LONGEST_PAUSE_S = 8.0
STOP_S = 25.0
POLL_S = 0.1
NICE = 10


@dataclass(frozen=True)
class Part:
    """`ready` asks the part itself and may raise while there is no answer; it gets the pid.
    Unavailable says what the part waits for. `gives_way`: it uses what processor time the others
    leave."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[int], bool]
    gives_way: bool = False


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
        """Who is killed from outside while it starts may yet be able to start."""
        if self.served:
            self.deaths = self.kills = 0
            self.crashes = 1 if quiet else self.crashes + 1
        elif self.process.returncode < 0:
            self.kills += 1
        else:
            self.deaths += 1

    @property
    def label(self) -> str:
        """Its name, and what it waits for itself."""
        return f"{self.part.name}: {self.reason}" if self.reason else self.part.name

    @property
    def hopeless(self) -> bool:
        return self.deaths > MOST_DEATHS or self.kills > MOST_KILLS or self.crashes > MOST_CRASHES


class Supervisor:
    """`folder` gets a log per part and the list of children, for whoever comes after a crash."""

    def __init__(self, folder: Path, stopping: threading.Event) -> None:
        self._logs, self._list = folder / "logs", folder / "children.json"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._stopping = stopping
        self._children: list[_Child] = []

    def start(self, parts: Sequence[Part]) -> None:
        """Start a group of parts that later groups stand on, and do not wait for them."""
        group = 1 + max((child.group for child in self._children), default=0)
        for part in parts:
            self._children.append(_Child(part, self._spawn(part), time.monotonic(), group))
        self._write_list()

    def wait(self, waiting: Callable[[str, float], None]) -> bool:
        """Until all are ready; `waiting` hears which is not, and for how long. False when told
        to stop meanwhile. StartupError with a part's last lines."""
        for child in self._children:
            while not self._is_ready(child):
                if self._stopping.wait(POLL_S):
                    return False
                self._require_alive()
                waiting(child.label, time.monotonic() - child.started_at)
            child.served = True
        return True

    def watch(self, said: Callable[[str], None]) -> None:
        """Until told to stop: restart what dies. StartupError when something keeps dying."""
        while not self._stopping.wait(POLL_S):
            for child in self._children:
                if child.process.poll() is not None:
                    self._revive(child, said)
                elif not child.served:
                    child.served = self._is_ready(child)

    def stop(self) -> None:
        """A group ends together, the last first, so that nothing loses what it stands on; what
        does not end is killed."""
        for number in sorted({child.group for child in self._children}, reverse=True):
            group = [child.process for child in self._children if child.group == number]
            for process in group:
                _ask_to_end(process)
            for process in group:
                _end(process)
        self._list.unlink(missing_ok=True)

    def _revive(self, child: _Child, said: Callable[[str], None]) -> None:
        now = time.monotonic()
        if not child.restart_at:
            child.count_death(quiet=now - child.started_at > QUIET_S)
            if child.hopeless:
                raise StartupError(self._obituary(child, "keeps ending"))
            pause = min(0.25 * 2**child.deaths, LONGEST_PAUSE_S)
            child.restart_at = now + pause
            code = child.process.returncode
            said(f"{child.part.name} ended ({_how(code)}); it starts again in {pause:.1f} s")
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
                start_new_session=True,  # Ctrl-C reaches us alone, and we end them in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        if part.gives_way:
            _give_way(process.pid)
        return process

    def _require_alive(self) -> None:
        for child in self._children:
            if child.process.poll() is not None:
                raise StartupError(self._obituary(child, "ended before all was ready"))

    def _is_ready(self, child: _Child) -> bool:
        child.reason = ""
        try:
            return child.part.ready(child.process.pid)
        except Unavailable as error:
            child.reason = error.detail
        except Exception:  # it does not answer yet
            return False
        return False

    def _obituary(self, child: _Child, what: str) -> str:
        log, name = self._logs / f"{child.part.name}.log", child.part.name
        with log.open(errors="replace") as lines:
            last = list(deque(lines, LOG_LINES))
        code = child.process.poll()
        if code == os.EX_CONFIG and last:  # our parts end with what must be set otherwise
            return f"{name} {what}: {last[-1].strip()}"
        shown = "".join(f"  {line}" for line in last).rstrip()
        return f"{name} {what} ({_how(code)}). Its last lines, from {log}:\n{shown}"

    def _write_list(self) -> None:
        alive = []
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                alive.append([child.process.pid, psutil.Process(child.process.pid).create_time()])
        whole = self._list.with_suffix(".new")  # a crash in between leaves the old list
        with suppress(OSError):  # on a full disk, too
            listed = {"folder": self._list.parent.stat().st_ino, "children": alive}
            whole.write_text(json.dumps(listed))
            whole.replace(self._list)


def end_leftovers(folder: Path) -> None:
    """End the children of a supervisor that was killed before it could."""
    left = []
    for pid, created in _listed(folder):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if abs(process.create_time() - created) < 1:  # not another one with its number
                process.terminate()
                left.append(process)
    _, stubborn = psutil.wait_procs(left, timeout=STOP_S)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=STOP_S)  # they hold locks on what we are about to open


def _listed(folder: Path) -> list[tuple[int, float]]:
    """Those of this very folder: the copy of one in use names the children of another stack."""
    try:
        listed = json.loads((folder / "children.json").read_text())
        if listed["folder"] != folder.stat().st_ino:
            return []
        return [(pid, created) for pid, created in listed["children"]]
    except (OSError, ValueError, TypeError):
        return []


def _ask_to_end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)  # a stopped process hears no SIGTERM
        process.terminate()


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _how(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _give_way(pid: int) -> None:
    """A tenth of the processor while others want all of it, and all of it otherwise.

    Linux shares it between sessions first, each part being one (sched(7), "The autogroup feature"):
    a process's own nice value then counts only beside others of its session.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))


def _die_with_parent() -> None:
    """Linux: SIGTERM when the supervisor ends, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
