"""Hooks for all tests: tiers, and the end of a run, which leaves no process and no folder."""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from support import models, services, stack, tiers

FOLDER = pytest.StashKey[Path]()
FAILED = pytest.StashKey[bool]()
RUN = "PYTEST_RUN_OF_CLIPFLEET"  # in the environment of every process of this run

settings.register_profile("no deadlines", deadline=None)  # a busy machine makes any example slow
settings.load_profile("no deadlines")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers.assign(items)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Create one folder for all files of this run, and mark its processes."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        return
    # Also where `nohup` or `&` made us ignore Ctrl-C: the processes of the tests would, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="clipfleet-tests-"))
    folder.chmod(0o711)  # tests of permissions read files below it as another user
    os.environ[RUN] = folder.name
    if config.option.basetemp is None:
        config.option.basetemp = folder / "pytest"
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    (folder / "tmp").mkdir()
    config.stash[FOLDER] = folder


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[FAILED] = exitstatus == pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt() -> None:
    """Ignore a second Ctrl-C, so that all processes are ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the last log lines of the running stacks to the report of a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"end of {name}", end) for name, end in stack.recent_logs(call.start)]
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(FOLDER, None)
    if folder is None:
        return
    _end_processes()
    util._run_finalizers()  # type: ignore[attr-defined]  # deletes the folder of the fork server
    if config.stash.get(FAILED, False) and not os.environ.get("CI"):
        print(f"\nthe files of this run are kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _end_processes() -> None:
    """End processes that fixtures could not end, as after Ctrl-C."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and _of_this_run(process):
                process.kill()


def _of_this_run(process: Any) -> bool:
    return bool(process.environ().get(RUN) == os.environ[RUN])


@pytest.fixture(scope="module")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Valkey that the tests of one file share."""
    with services.valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Milvus]:
    """One Milvus server for all tests, since it takes seconds to start."""
    with services.milvus_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small CLIP with random weights."""
    return models.tiny_clip(tmp_path_factory.mktemp("tiny-clip"))
