"""Feeders: what they prepare, and what is left when one of them or their worker dies."""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from shutil import which

import numpy as np
import psutil
import pytest
from PIL import Image

from clipfleet.workers.ingest import feeders as module
from clipfleet.workers.ingest.feeders import ThreadFeeders
from clipfleet.workers.ingest.prepare import Failed, Unchanged
from clipfleet.workers.metrics import RestartReason, StageTimings
from support.bad_preprocess import BUG, CRASH, FULL, HANG, KILL, BadPreprocess
from support.feeding import SPEC, feeding, kit, photo, request, submit
from support.services import eventually

BAD = BadPreprocess(**SPEC.model_dump())


def test_feeders_prepare_as_threads_do(tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{n}.png", 10 + n, n) for n in range(100)]
    with feeding(tmp_path) as feeders, closing(ThreadFeeders(2, kit(tmp_path))) as threads:
        ours = [submit(feeders, path) for path in paths]
        theirs = [submit(threads, path) for path in paths]
        for fed, expected_fed in zip(ours, theirs, strict=True):
            (prepared, pixels), (expected, rows) = fed.result(60), expected_fed.result(60)
            assert prepared == expected
            np.testing.assert_array_equal(pixels, rows)


def test_bytes_that_the_worker_has_read_are_prepared(tmp_path: Path) -> None:
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1_000, 1_000, 3), np.uint8)
    Image.fromarray(noise).save(data, "PNG")  # 3 MB each: more than a pipe holds
    query = request(tmp_path, data=data.getvalue())
    with feeding(tmp_path) as feeders:
        results = [feeders.submit(query, StageTimings()) for _ in range(40)]
        assert {result.result(60)[0].file_bytes for result in results} == {len(data.getvalue())}


def test_times_of_reading_and_decoding_are_added(tmp_path: Path) -> None:
    timings = StageTimings()
    with feeding(tmp_path) as feeders:
        feeders.submit(request(photo(tmp_path / "a.png")), timings).result(60)
    assert timings.seconds.keys() == {"read", "decode"}


def test_an_unchanged_image_is_not_prepared(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    with feeding(tmp_path) as feeders:
        known = submit(feeders, path).result(60)[0].content_hash
        with pytest.raises(Unchanged):
            submit(feeders, path, known=known).result(60)


def test_damaged_missing_and_forbidden_files_fail_with_reasons(tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no image")
    with feeding(tmp_path) as feeders:
        for path, stage in [
            (tmp_path / "damaged.png", "decode"),
            (tmp_path / "missing.png", "read"),
            (Path("/etc/passwd"), "read"),
        ]:
            with pytest.raises(Failed) as failed:
                submit(feeders, path).result(60)
            assert failed.value.stage == stage


def test_an_unexpected_error_is_raised_and_the_feeder_goes_on(tmp_path: Path) -> None:
    bad, good = photo(tmp_path / "bad.png", BUG), photo(tmp_path / "good.png")
    with feeding(tmp_path, 1, BAD) as feeders:
        with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
            submit(feeders, bad).result(60)
        assert submit(feeders, good).result(60)


@pytest.mark.parametrize(
    ("width", "reason", "restarts"),
    [
        (CRASH, "SIGSEGV", ["crash"]),
        (KILL, "SIGKILL", ["killed"] * module.MAX_DEATHS),
        (FULL, "too little memory", []),
    ],
)
def test_an_image_that_ends_its_feeder_fails_and_the_others_do_not(
    tmp_path: Path, width: int, reason: str, restarts: list[str]
) -> None:
    seen: list[RestartReason] = []
    paths = [photo(tmp_path / f"{n}.png") for n in range(60)]
    bad = photo(tmp_path / "bad.png", width)
    with feeding(tmp_path, 2, BAD, seen.append) as feeders:
        results = [submit(feeders, path) for path in [*paths[:30], bad, *paths[30:]]]
        with pytest.raises(Failed, match=reason) as failed:
            results.pop(30).result(60)
        assert failed.value.stage == "decode"
        assert all(result.result(60) for result in results)
    assert seen == restarts


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 2.0)
    bad, good = photo(tmp_path / "bad.png", HANG), photo(tmp_path / "good.png")
    seen: list[RestartReason] = []
    with feeding(tmp_path, 1, BAD, seen.append) as feeders:
        results = [submit(feeders, good), submit(feeders, bad), submit(feeders, good)]
        with pytest.raises(Failed, match="not read and decoded within 2 s"):
            results.pop(1).result(60)
        assert all(result.result(60) for result in results)
    assert seen == ["hung"]


def test_feeders_that_are_killed_cost_no_image(tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{n}.png", 300, n % 256) for n in range(600)]
    with feeding(tmp_path) as feeders:
        results = [submit(feeders, path) for path in paths]
        for share in (100, 200, 300):
            results[share].result(60)
            os.kill(feeders.pids[0], signal.SIGKILL)
        assert all(result.result(60) for result in results)


def test_an_idle_feeder_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    with feeding(tmp_path, 1) as feeders:
        submit(feeders, path).result(60)
        process = psutil.Process(feeders.pids[0])
        process.kill()
        eventually(lambda: not _runs(process), 30, "the process ends")
        assert submit(feeders, path).result(60)


@pytest.mark.parametrize("number", [0, 1])
def test_a_few_images_are_not_all_given_to_one_feeder(tmp_path: Path, number: int) -> None:
    path = photo(tmp_path / "a.png")
    with feeding(tmp_path, 2) as feeders:
        eventually(lambda: len(feeders.pids) == 2, 30, "both feeders")
        processes = [psutil.Process(pid) for pid in feeders.pids]
        for process in processes:
            process.suspend()
        results = [submit(feeders, path) for _ in range(8)]
        eventually(lambda: all(result.running() for result in results), 30, "all are taken")
        processes[number].resume()
        eventually(lambda: sum(result.done() for result in results) >= 4, 30, "half is done")
        processes[1 - number].resume()
        assert all(result.result(60) for result in results)


def test_an_image_that_waits_can_be_cancelled(tmp_path: Path) -> None:
    slow, path = photo(tmp_path / "slow.png", HANG), photo(tmp_path / "a.png")
    with feeding(tmp_path, 1, BAD) as feeders:
        hanging = submit(feeders, slow)
        eventually(hanging.running, 30, "the image is begun")
        waiting = [submit(feeders, path) for _ in range(100)]
        assert waiting[-1].cancel()


def _note(order: list[float], priority: float, _: object) -> None:
    order.append(priority)


def test_images_of_the_chunk_that_began_first_are_prepared_first(tmp_path: Path) -> None:
    order: list[float] = []
    path = photo(tmp_path / "a.png")
    with feeding(tmp_path, 1) as feeders:
        for priority in (2.0, 1.0):
            for _ in range(200):
                result = feeders.submit(request(path), StageTimings(), priority)
                result.add_done_callback(partial(_note, order, priority))
        eventually(lambda: len(order) == 400, 60, "all images are prepared")
    assert order[-100:] == [2.0] * 100
    assert 1.0 in order[:100]


WORKER = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from support.bad_preprocess import HANG, BadPreprocess
from support.feeding import feeding, photo, submit

if __name__ == "__main__":
    folder = Path({folder!r})
    with feeding(folder, 2, BadPreprocess(shortest=8, height=8, width=8)) as feeders:
        submit(feeders, photo(folder / "a.png")).result(60)
        submit(feeders, photo(folder / "hangs.png", HANG))
        print(*feeders.pids, flush=True)
        time.sleep(3_600)
"""


@pytest.fixture
def small_folders() -> Iterator[Callable[[str, str], list[str]]]:
    """The beginning of a command that has so much room in /dev/shm and in TMPDIR."""

    def begin(shm: str, temporary: str) -> list[str]:
        mounts = (
            f"mount -t tmpfs -o size={shm} tmpfs /dev/shm && "
            f"mount -t tmpfs -o size={temporary} tmpfs {folder} && "
            f'export TMPDIR={folder} && exec "$@"'
        )
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounts, "sh"]
        if not which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
            pytest.skip("this user may not mount folders")
        return command

    # Not tmp_path: the path of a socket in it would be too long.
    with tempfile.TemporaryDirectory(prefix="small-") as folder:
        yield begin


SMALL = """
import logging, sys
sys.path[:0] = {path!r}
from pathlib import Path
from clipfleet.common.errors import StartupError
from support.feeding import feeding, photo, submit

if __name__ == "__main__":
    folder = Path({folder!r})
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    try:
        with feeding(folder, 2) as feeders:
            for _ in range(200):
                submit(feeders, photo(folder / "a.png")).result(60)
            print("outside:", Path("/proc/self/maps").read_text().count("/pymp-"))
    except StartupError as error:
        print("no start:", error.detail)
"""


@pytest.mark.parametrize(
    ("shm", "temporary", "expected"),
    [
        ("1m", "1m", "^outside: 0$"),
        ("4k", "1m", r"lie in .*/small-\w+, which may be a disk; make /dev/shm larger .*=1\n"),
        ("4k", "1m", "^outside: [1-9]"),
        ("4k", "4k", r"^no start: 2 feeders share .*/dev/shm has 0.0 MB free, .*/small-\w+ 0.0 MB"),
    ],
)
def test_a_small_dev_shm_is_noticed(
    tmp_path: Path,
    small_folders: Callable[[str, str], list[str]],
    shm: str,
    temporary: str,
    expected: str,
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(SMALL.format(path=sys.path, folder=str(tmp_path)))
    command = [*small_folders(shm, temporary), sys.executable, str(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert re.search(expected, done.stdout, re.M), done.stdout


def test_a_killed_worker_leaves_no_process_and_no_memory(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    (tmp_path / "worker.py").write_text(WORKER.format(path=sys.path, folder=str(tmp_path)))
    with subprocess.Popen(
        [sys.executable, tmp_path / "worker.py"], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        family = psutil.Process(worker.pid).children(recursive=True)
        assert len(pids) == 2
        assert set(pids) <= {process.pid for process in family}
        worker.kill()
    eventually(lambda: not any(map(_runs, family)), 30, "the processes end")
    assert set(os.listdir("/dev/shm")) <= before


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_closing_ends_the_feeders(tmp_path: Path) -> None:
    with feeding(tmp_path) as feeders:
        submit(feeders, photo(tmp_path / "a.png")).result(60)
        processes = [psutil.Process(pid) for pid in feeders.pids]
    eventually(lambda: not any(map(_runs, processes)), 30, "the feeders end")
