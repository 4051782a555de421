"""Feeders: processes that prepare images, so that the device does not wait for the host.

Threads do not scale here: two threads prepare 1.4 times as many images as one, and two processes
twice as many, since Pillow holds the interpreter's lock. A process also contains what an image does
to its decoder. docs/decisions/0026 compares libraries that keep a pool of processes.
"""

import ctypes
import heapq
import itertools
import logging
import math
import multiprocessing
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

from clipfleet.common.imaging.preprocess import Pixels
from clipfleet.common.process.machine import cores
from clipfleet.common.settings import Settings
from clipfleet.workers.ingest.feeder import Order, Report, Shared, serve
from clipfleet.workers.ingest.prepare import Failed, Kit, Prepare, Prepared, Request
from clipfleet.workers.ingest.shared_memory import require_room
from clipfleet.workers.metrics import RestartReason, StageTimings

log = logging.getLogger(__name__)

BATCH = 16  # images that are sent to a feeder at once, at most
CELLS = 2 * BATCH  # a feeder has the next batch before it reports the last image of a batch
AHEAD_BYTES = 32_768  # a busy feeder is sent so much at most: more may fill the pipe
TIMEOUT_S = 60.0  # for one image
LOOK_S = 1.0  # between two looks at a feeder that reports nothing
MAX_DEATHS = 3  # of feeders on one image
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
JOIN_S = 5.0
IO_TIMEOUT_S = 10
RESTART_PAUSE_S = 1.0  # after a feeder that could not start

Fed = tuple[Prepared, Pixels]


class Feeders(Protocol):
    """Prepares images.

    Implementations: `ProcessFeeders`, and `ThreadFeeders` for tests and services in memory.

    Attributes:
        ahead: the number of images under way that keeps all feeders busy.
    """

    @property
    def ahead(self) -> int: ...

    def submit(
        self, request: Request, timings: StageTimings, priority: float = 0.0
    ) -> "Future[Fed]":
        """Queue an image.

        Args:
            request: the image.
            timings: the time of each stage is added to it.
            priority: images with a lower number are prepared first.

        Returns:
            A future of the image and its pixels, uint8 [height, width, 3]. It can be cancelled
            until the image is begun. It raises Failed when the image cannot be prepared,
            Unchanged when it has the content hash `request.known`, and DetailsChanged when it has
            the bytes of that.
        """
        ...

    def close(self) -> None:
        """End the feeders. Images that wait are cancelled."""
        ...


class ThreadFeeders:
    """Feeders without processes.

    Args:
        count: the number of threads.
    """

    ahead = 0

    def __init__(self, count: int, kit: Kit) -> None:
        self._threads, self._prepare = ThreadPoolExecutor(count, "feeder"), Prepare(kit)

    def submit(
        self,
        request: Request,
        timings: StageTimings,
        priority: float = 0.0,  # noqa: ARG002
    ) -> "Future[Fed]":
        """Queue an image; the priority is not used."""
        return self._threads.submit(self._prepare, request, timings)

    def close(self) -> None:
        """End the threads. Images that wait are cancelled."""
        self._threads.shutdown(cancel_futures=True)


@dataclass(order=True)
class _Entry:
    priority: float
    number: int
    request: Request = field(compare=False)
    timings: StageTimings = field(compare=False)
    future: "Future[Fed]" = field(compare=False, default_factory=Future)
    deaths: int = field(compare=False, default=0)


class ProcessFeeders:
    """Feeders in processes of their own. One thread here sends to all of them and receives.

    The pixels come through shared memory: CELLS images for each feeder. A feeder that dies is
    started anew. Its other images are prepared again; the one that it was preparing fails if a
    crash was the end, or if it is the end of MAX_DEATHS feeders.

    Args:
        count: the number of feeders.
        restarted: called when a feeder ended and another one takes its place.
    """

    def __init__(
        self, count: int, kit: Kit, restarted: Callable[[RestartReason], None] = lambda _: None
    ) -> None:
        self.count, self.ahead = count, CELLS * count
        self._restarted, self._kit = restarted, kit
        self._waiting: list[_Entry] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._is_idle = self._is_closed = False
        self._wake_up, self._woken = os.pipe()[::-1]
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        self._feeders: list[_Feeder] = []

    def start(self) -> None:
        """Start the feeders. Images that wait by then are prepared, too.

        Raises:
            StartupError: there is no room for the shared memory.
        """
        require_room(self.count, _Feeder.memory_bytes(self._kit))
        self._feeders = [_Feeder(self._kit, self._poll) for _ in range(self.count)]
        threading.Thread(target=self._run, name="feeders", daemon=True).start()

    def submit(
        self, request: Request, timings: StageTimings, priority: float = 0.0
    ) -> "Future[Fed]":
        """Queue an image; see `Feeders`."""
        entry = _Entry(priority, next(self._numbers), request, timings)
        with self._lock:
            heapq.heappush(self._waiting, entry)
            is_idle, self._is_idle = self._is_idle, False
        if is_idle:
            os.write(self._wake_up, b".")
        return entry.future

    def close(self) -> None:
        """End the feeders. Images that wait are cancelled."""
        with self._lock:
            self._is_closed = True
            for entry in self._waiting:
                entry.future.cancel()
            self._waiting.clear()
        os.write(self._wake_up, b".")
        for feeder in self._feeders:
            feeder.kill()

    @property
    def pids(self) -> list[int]:
        """The process ids of the feeders that run."""
        return [pid for feeder in self._feeders if (pid := feeder.pid)]

    def _run(self) -> None:
        """Send images and receive results until the pool is closed.

        One thread for all feeders: with a thread for each, sixteen of them wait for the
        interpreter's lock at each message, and a worker does 1,900 images a second at most.
        """
        looked_at = time.monotonic()
        while not self._is_closed:
            for feeder in self._feeders:
                self._guarded(feeder, feeder.start_if_due)
            self._hand_out()
            with self._lock:
                self._is_idle = not self._waiting and any(each.has_room for each in self._feeders)
            ready = {fd for fd, _ in self._poll.poll(1_000 * LOOK_S)}
            self._is_idle = False
            if self._woken in ready:
                os.read(self._woken, 4_096)
            for feeder in self._feeders:
                if feeder.fileno in ready:
                    self._guarded(feeder, feeder.receive)
            if time.monotonic() - looked_at >= LOOK_S:
                looked_at = time.monotonic()
                for feeder in self._feeders:
                    self._guarded(feeder, feeder.look)
        for feeder in self._feeders:
            feeder.kill()

    def _hand_out(self) -> None:
        for feeder in sorted(self._feeders, key=lambda each: each.held):
            while feeder.has_room and (entries := self._take(feeder.held)):
                self._guarded(feeder, partial(self._send, feeder, entries))

    def _send(self, feeder: "_Feeder", entries: Sequence[_Entry]) -> None:
        self._put_back(feeder.send(entries))

    def _guarded(self, feeder: "_Feeder", step: Callable[[], None]) -> None:
        """Take a step, and replace the feeder when that fails."""
        try:
            step()
        except _Ended as ended:
            self._replace(feeder, str(ended), has_hung=ended.has_hung)
        except Exception as error:  # without this thread, images would wait for ever
            if not isinstance(error, OSError | EOFError):
                log.exception("a feeder is started anew")
            self._replace(feeder, str(error) or "it ended")
        self._put_back(feeder.again)

    def _take(self, held: int) -> list[_Entry]:
        """The next images for one feeder, at most BATCH, and no more than its share of all images
        that wait or are held: a few large images are not all given to one feeder.

        Args:
            held: the number of images that the feeder has. A feeder that has some is busy, and gets
                no image whose bytes have to be sent.
        """
        with self._lock:
            taken: list[_Entry] = []
            under_way = len(self._waiting) + sum(feeder.held for feeder in self._feeders)
            limit = min(BATCH, math.ceil(under_way / self.count) - held)
            while self._waiting and len(taken) < limit:
                if held and self._waiting[0].request.data is not None:
                    break
                entry = heapq.heappop(self._waiting)
                if entry.future.running() or entry.future.set_running_or_notify_cancel():
                    taken.append(entry)
            return taken

    def _put_back(self, entries: list[_Entry]) -> None:
        if entries:
            with self._lock:
                for entry in entries:
                    heapq.heappush(self._waiting, entry)
            entries.clear()

    def _replace(self, feeder: "_Feeder", why: str, *, has_hung: bool = False) -> None:
        code = feeder.end(has_hung=has_hung)
        if not self._is_closed:
            log.warning("a feeder is started anew: %s (exit code %s)", why, code)
            self._restarted(_cause(code, has_hung))


class _Ended(Exception):
    """A feeder has to be replaced."""

    def __init__(self, reason: str, *, has_hung: bool = False) -> None:
        super().__init__(reason)
        self.has_hung = has_hung


class _Feeder:
    """One feeder, and what the worker knows about it. Only the thread of the pool changes it.

    Args:
        poll: notices results.

    Attributes:
        again: images that are to be prepared by another feeder, or once more.
    """

    def __init__(self, kit: Kit, poll: "select.poll") -> None:
        # Never "fork": the worker has threads, gRPC and perhaps a CUDA context.
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([serve.__module__])
        self._kit, self._poll, self._context = kit, poll, context
        shape = (kit.preprocess.height, kit.preprocess.width, 3)
        self._memory = context.RawArray(ctypes.c_ubyte, self.memory_bytes(kit))
        self._begun = context.RawValue(ctypes.c_uint64, 0)
        self._shared = Shared(self._memory, self._begun, shape)
        self._process: Any = None
        self._connection: Connection | None = None
        self._numbers = itertools.count(1)
        self._sent: dict[int, tuple[_Entry, int]] = {}  # entry and cell, by number of the order
        self._free = list(range(CELLS))
        self._looks = self._begun_before = 0
        self._start_at = 0.0
        self.again: list[_Entry] = []

    @staticmethod
    def memory_bytes(kit: Kit) -> int:
        """The size of the memory that one feeder shares with the worker."""
        return CELLS * kit.preprocess.height * kit.preprocess.width * 3

    @property
    def pid(self) -> int:
        """The id of the process; 0 while there is none."""
        process = self._process
        return process.pid or 0 if process is not None else 0

    @property
    def fileno(self) -> int:
        """The descriptor of the connection; -1 while there is none."""
        return self._connection.fileno() if self._connection is not None else -1

    @property
    def held(self) -> int:
        """The number of images that the feeder was sent and has not reported."""
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether the feeder runs and can be sent more images."""
        return self._connection is not None and len(self._free) >= BATCH

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    def start_if_due(self) -> None:
        """Start the process if there is none, and watch its connection."""
        if self._connection is not None or time.monotonic() < self._start_at:
            return
        self._start_at = time.monotonic() + RESTART_PAUSE_S
        try:
            ours, theirs = self._context.Pipe()
            _limit_waits(ours)
            arguments = (theirs, self._memory, self._begun, self._kit)
            process = self._context.Process(target=serve, args=arguments, daemon=True)
            process.start()
        except (OSError, EOFError, RuntimeError) as error:
            log.critical("a feeder cannot be started: %s", error)
            return
        theirs.close()
        self._connection, self._process, self._begun.value = ours, process, 0
        self._poll.register(ours.fileno(), select.POLLIN)

    def send(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Send images; returns those that are too large for a feeder that is busy."""
        assert self._connection is not None
        is_idle, orders = not self._sent, []
        for entry in entries:
            number, cell = next(self._numbers), self._free.pop()
            self._sent[number] = entry, cell
            orders.append(Order(number, cell, entry.request))
        payload = ForkingPickler.dumps(orders)
        if is_idle:
            self._looks = 0
        elif len(payload) > AHEAD_BYTES:
            for order in orders:
                self._free.append(self._sent.pop(order.number)[1])
            return list(entries)
        self._connection.send_bytes(payload)
        return []

    def receive(self) -> None:
        """Receive results; raises EOFError or OSError when the feeder has ended."""
        assert self._connection is not None
        reports = self._connection.recv()
        self._looks = 0
        for report in reports:
            self._finish(report)

    def look(self) -> None:
        """Notice an image that takes too long. Called every LOOK_S.

        Looks are counted, not seconds: a worker that was stopped for a while has not looked.
        """
        if not self._sent or self._begun_before != self._shared.begun:
            self._begun_before, self._looks = self._shared.begun, 0
            return
        self._looks += 1
        if self._looks * LOOK_S >= TIMEOUT_S:
            raise _Ended(f"one image took more than {TIMEOUT_S:g} s", has_hung=True)

    def _finish(self, report: Report) -> None:
        entry, cell = self._sent.pop(report.number)
        self._free.append(cell)
        entry.timings.add(report.seconds)
        if isinstance(report.result, MemoryError):
            self._judge(entry, "the machine has too little memory to decode the image")
        elif isinstance(report.result, Exception):
            entry.future.set_exception(report.result)
        else:
            entry.future.set_result((report.result, self._shared.copied(cell)))

    def end(self, *, has_hung: bool) -> int | None:
        """End the process, and put its images into `again`. Returns its exit code, if known."""
        process, begun = self._process, self._shared.begun
        if self._connection is not None:
            self._poll.unregister(self._connection.fileno())
            self._connection.close()
        self._connection = self._process = None
        if process is not None:
            process.kill()
            process.join(0.1 if has_hung else JOIN_S)
        code: int | None = process.exitcode if process is not None else None
        ended = [(number, entry) for number, (entry, _) in self._sent.items()]
        self._sent, self._free = {}, list(range(CELLS))
        for number, entry in ended:
            if number == begun:
                self._judge(entry, _reason(code, has_hung), at_once=has_hung or _is_crash(code))
            else:
                self.again.append(entry)
        if ended:  # it was at work: the next one need not wait
            self._start_at = 0.0
        return code

    def _judge(self, entry: _Entry, reason: str, *, at_once: bool = False) -> None:
        """Fail an image that was the end of a feeder, or let it be tried again."""
        entry.deaths += 1
        if at_once or entry.deaths >= MAX_DEATHS:
            entry.future.set_exception(Failed("decode", reason))
        else:
            self.again.append(entry)


def _limit_waits(connection: Connection) -> None:
    """Let writing to and reading from a feeder that was stopped fail after IO_TIMEOUT_S."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", IO_TIMEOUT_S, 0))


def feeder_count(settings: Settings) -> int:
    """The number of feeders of a worker; by default, all cores but one, which the device needs."""
    return settings.feeders or max(1, cores() - 1)


def _cause(code: int | None, has_hung: bool) -> RestartReason:
    if has_hung:
        return "hung"
    return "killed" if code is not None and code < 0 and not _is_crash(code) else "crash"


def _is_crash(code: int | None) -> bool:
    return code is not None and -code in CRASHES


def _reason(code: int | None, has_hung: bool) -> str:
    if has_hung:
        return f"the image was not read and decoded within {TIMEOUT_S:g} s"
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return f"reading or decoding the image ended its process ({name})"
