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
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
            until the image is begun. It raises Failed when the image cannot be prepared, and
            Unchanged when it has the content hash `request.known`.
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
    """Feeders in processes of their own. Each has a thread here that sends and receives.

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
        self.restarted, self._kit = restarted, kit
        self._waiting: list[_Entry] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._is_closed = False
        self._feeders: list[_Feeder] = []

    def start(self) -> None:
        """Start the feeders. Images that wait by then are prepared, too.

        Raises:
            StartupError: there is no room for the shared memory.
        """
        require_room(self.count, _Feeder.memory_bytes(self._kit))
        self._feeders = [_Feeder(self, self._kit) for _ in range(self.count)]
        for feeder in self._feeders:
            threading.Thread(target=feeder.run, name="feeder", daemon=True).start()

    def submit(
        self, request: Request, timings: StageTimings, priority: float = 0.0
    ) -> "Future[Fed]":
        """Queue an image; see `Feeders`."""
        entry = _Entry(priority, next(self._numbers), request, timings)
        with self._changed:
            heapq.heappush(self._waiting, entry)
            self._changed.notify()
        return entry.future

    def close(self) -> None:
        """End the feeders. Images that wait are cancelled."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            for entry in self._waiting:
                entry.future.cancel()
            self._waiting.clear()
        for feeder in self._feeders:
            feeder.kill()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    @property
    def pids(self) -> list[int]:
        """The process ids of the feeders that run."""
        return [pid for feeder in self._feeders if (pid := feeder.pid)]

    def take(self, held: int) -> list[_Entry]:
        """Take the next images for one feeder, at most BATCH, and no more than its share of all
        images that wait or are held: a few large images are not all given to one feeder.

        Args:
            held: the number of images that the feeder has. Without any, it waits for an image;
                otherwise it is busy, and gets no image whose bytes have to be sent.

        Returns:
            Images whose futures are running; none when `close` was called.
        """
        with self._changed:
            if not held:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
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

    def put_back(self, entries: Sequence[_Entry]) -> None:
        """Queue images again that `take` returned."""
        with self._changed:
            for entry in entries:
                heapq.heappush(self._waiting, entry)
            self._changed.notify_all()


class _Feeder:
    """One feeder, and what the worker knows about it. Only the thread of `run` changes it."""

    def __init__(self, pool: ProcessFeeders, kit: Kit) -> None:
        methods = multiprocessing.get_all_start_methods()
        # Never "fork": the worker has threads, gRPC and perhaps a CUDA context.
        context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        if "forkserver" in methods:
            context.set_forkserver_preload([serve.__module__])
        self._pool, self._kit, self._context = pool, kit, context
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
    def held(self) -> int:
        """The number of images that the feeder was sent and has not reported; on any thread."""
        return len(self._sent)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    def run(self) -> None:
        """Send images and receive results until the pool is closed."""
        while not self._pool.is_closed:
            try:
                if self._connection is None:
                    self._start()
                elif self._send():
                    self._receive()
            except OSError as error:
                self._replace(str(error))
            except Exception as error:  # without this thread, images would wait for ever
                log.exception("a feeder is started anew")
                self._replace(str(error))
        self.kill()

    def _start(self) -> None:
        try:
            ours, theirs = self._context.Pipe()
            arguments = (theirs, self._memory, self._begun, self._kit)
            process = self._context.Process(target=serve, args=arguments, daemon=True)
            process.start()
        except (OSError, EOFError, RuntimeError) as error:
            log.critical("a feeder cannot be started: %s", error)
            time.sleep(RESTART_PAUSE_S)
            return
        theirs.close()
        self._connection, self._process, self._begun.value = ours, process, 0
        self._poll = select.poll()  # `Connection.poll` makes a selector at each call
        self._poll.register(ours.fileno(), select.POLLIN)

    def _send(self) -> bool:
        """Send what the feeder has room for. Returns whether results are to be received."""
        assert self._connection is not None
        while len(self._free) >= BATCH:
            is_idle = not self._sent
            entries = self._pool.take(self.held)
            if not entries:
                break
            if is_idle:
                self._looks = 0
            orders = []
            for entry in entries:
                number, cell = next(self._numbers), self._free.pop()
                self._sent[number] = entry, cell
                orders.append(Order(number, cell, entry.request))
            payload = ForkingPickler.dumps(orders)
            if not is_idle and len(payload) > AHEAD_BYTES:
                self._unsend(orders)
                break
            self._connection.send_bytes(payload)
        return bool(self._sent)

    def _unsend(self, orders: Sequence[Order]) -> None:
        entries = []
        for order in orders:
            entry, cell = self._sent.pop(order.number)
            entries.append(entry)
            self._free.append(cell)
        self._pool.put_back(entries)

    def _receive(self) -> None:
        assert self._connection is not None
        if self._poll.poll(1_000 * LOOK_S):
            try:
                reports = self._connection.recv()
            except (EOFError, OSError):
                self._replace("it ended")
                return
            self._looks = 0
            for report in reports:
                self._finish(report)
        elif self._begun_before != self._shared.begun:
            self._begun_before, self._looks = self._shared.begun, 0
        else:  # counted in looks, not seconds: a worker that was stopped has not looked
            self._looks += 1
            if self._looks * LOOK_S >= TIMEOUT_S:
                self._replace(f"one image took more than {TIMEOUT_S:g} s", has_hung=True)

    def _finish(self, report: Report) -> None:
        entry, cell = self._sent.pop(report.number)
        pixels = self._shared.cells[cell].copy()
        self._free.append(cell)
        entry.timings.add(report.seconds)
        if isinstance(report.result, MemoryError):
            self._judge(entry, "the machine has too little memory to decode the image")
        elif isinstance(report.result, Exception):
            entry.future.set_exception(report.result)
        else:
            entry.future.set_result((report.result, pixels))

    def _replace(self, why: str, *, has_hung: bool = False) -> None:
        """End the process, and put its images back; `_start` starts another one."""
        process, begun = self._process, self._shared.begun
        if self._connection is not None:
            self._connection.close()
        self._connection = self._process = None
        if process is not None:
            process.kill()
            process.join(JOIN_S)
        ended = [(number, entry) for number, (entry, _) in self._sent.items()]
        self._sent, self._free = {}, list(range(CELLS))
        self._pool.put_back([entry for number, entry in ended if number != begun])
        if self._pool.is_closed:
            return
        code = process.exitcode if process is not None else None
        log.warning("a feeder is started anew: %s (exit code %s)", why, code)
        self._pool.restarted(_cause(code, has_hung))
        for number, entry in ended:
            if number == begun:
                self._judge(entry, _reason(code, has_hung), at_once=has_hung or _is_crash(code))
        if not ended:
            time.sleep(RESTART_PAUSE_S)

    def _judge(self, entry: _Entry, reason: str, *, at_once: bool = False) -> None:
        """Fail an image that was the end of a feeder, or let it be tried again."""
        entry.deaths += 1
        if at_once or entry.deaths >= MAX_DEATHS:
            entry.future.set_exception(Failed("decode", reason))
        else:
            self._pool.put_back([entry])


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
