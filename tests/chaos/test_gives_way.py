"""A part that gives way gets less of the processor than the others, also after a restart."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clipfleet.embedded.supervisor import NICENESS, Part, Supervisor
from support import services

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def children() -> dict[int, int]:
    """Return the nice value of each child process."""
    processes = psutil.Process().children()
    return {
        process.pid: process.nice()
        for process in processes
        if process.status() != psutil.STATUS_ZOMBIE
    }


shares_by_session = pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(),  # it is empty for a session as old as the machine
    reason="this kernel does not share the processor between sessions",
)


def group_nice(pid: int) -> int:
    """Return the nice value of the session that a process has begun (Linux only)."""
    return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@shares_by_session
def test_only_the_part_that_gives_way_does(tmp_path: Path, stopping: threading.Event) -> None:
    before = children()
    started = Supervisor(tmp_path, stopping)
    try:
        started.start([Part("one", SLEEP, {}, lambda _: True)])
        (usual,) = children().keys() - before.keys()
        started.start([Part("bulk", SLEEP, {}, lambda _: True, niceness=NICENESS)])
        (bulk,) = children().keys() - before.keys() - {usual}
        here = psutil.Process().nice()
        assert (children()[usual], children()[bulk]) == (here, NICENESS)
        assert (group_nice(usual), group_nice(bulk)) == (0, NICENESS)
    finally:
        started.stop()


def test_it_gives_way_again_after_a_restart(tmp_path: Path, stopping: threading.Event) -> None:
    before = children()
    started = Supervisor(tmp_path, stopping)
    try:
        started.start([Part("bulk", SLEEP, {}, lambda _: True, niceness=NICENESS)])
        started.wait(lambda *_: None)
        (first,) = children().keys() - before.keys()
        watching = threading.Thread(target=started.watch, args=(lambda _: None,))
        watching.start()
        psutil.Process(first).kill()
        services.eventually(
            lambda: (
                NICENESS in [children()[pid] for pid in children().keys() - before.keys() - {first}]
            ),
            30,
            "a second process that gives way",
        )
        stopping.set()
        watching.join()
    finally:
        started.stop()


SEVERAL = """
import sys, threading
sys.path[:0] = {path!r}
from pathlib import Path
import psutil
from clipfleet.embedded.supervisor import NICENESS, Part, Supervisor

started = Supervisor(Path({folder!r}), threading.Event())
try:
    sleep = {sleep!r}
    parts = [Part(f"bulk-{{n}}", sleep, {{}}, lambda _: True, niceness=NICENESS) for n in range(3)]
    started.start(parts)
    for child in psutil.Process().children():
        print(Path(f"/proc/{{child.pid}}/autogroup").read_text().split()[-1])
finally:
    started.stop()
"""


@shares_by_session
def test_several_that_give_way_all_do_without_the_rights_of_root(tmp_path: Path) -> None:
    ordinary = ["setpriv", "--bounding-set=-sys_admin"] if os.geteuid() == 0 else []
    script = SEVERAL.format(path=sys.path, folder=str(tmp_path), sleep=SLEEP)
    command = [*ordinary, sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == [str(NICENESS)] * 3
