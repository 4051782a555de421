"""The process of a feeder: prepares images and puts their pixels into shared memory.

`feeders.py` starts it. This module is imported by a fork server, so it imports no more than that.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipfleet.workers.ingest.prepare import (
    DetailsChanged,
    Failed,
    Kit,
    Prepare,
    Prepared,
    Request,
    Unchanged,
)
from clipfleet.workers.metrics import StageTimings, TimedStage

REPORT_SIZE, REPORT_S = 8, 0.01  # results are sent once there are so many, or after this time


class Order(NamedTuple):
    """One request of a batch.

    Attributes:
        number: counts the requests of a feeder, from 1.
        cell: the place of the pixels in the shared memory.
    """

    number: int
    cell: int
    request: Request


class Report(NamedTuple):
    """The result of one request.

    Attributes:
        number: the number of its order.
        result: the image, or why there is none.
        seconds: the time in each stage.
    """

    number: int
    result: Prepared | Exception
    seconds: dict[TimedStage, float]


class Shared:
    """The memory that a feeder shares with its worker.

    Args:
        memory: `(cells x bytes of the pixels)` numbers, from `RawArray`.
        begun: one number: that of the order that the feeder began last.
        shape: the shape of the pixels of one image.
    """

    def __init__(self, memory: Any, begun: Any, shape: tuple[int, int, int]) -> None:
        self._begun, size = begun, int(np.prod(shape))
        flat = np.frombuffer(memory, np.uint8)
        self.cells: NDArray[np.uint8] = flat.reshape(len(flat) // size, *shape)

    def copied(self, cell: int) -> NDArray[np.uint8]:
        """A copy of the pixels of a cell.

        Not `copy()`, which gives the interpreter's lock away for a few microseconds of work, and
        then waits for it.
        """
        pixels = self.cells[cell]
        return np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape)

    @property
    def begun(self) -> int:
        """The number of the order that the feeder began last; 0: none."""
        return int(self._begun.value)

    @begun.setter
    def begun(self, number: int) -> None:
        self._begun.value = number


def serve(connection: Connection, memory: Any, begun: Any, kit: Kit) -> None:
    """Prepare batches of orders until the connection is closed or the worker has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides when its feeders end
    threading.Thread(target=_end_with_worker, daemon=True).start()
    spec = kit.preprocess
    shared = Shared(memory, begun, (spec.height, spec.width, 3))
    prepare = Prepare(kit)
    while True:
        try:
            _prepare_batch(connection, connection.recv(), shared, prepare)
        except (EOFError, OSError):
            return


def _prepare_batch(
    connection: Connection, batch: Sequence[Order], shared: Shared, prepare: Prepare
) -> None:
    reports: list[Report] = []
    since = time.monotonic()
    for order in batch:
        shared.begun = order.number
        timings = StageTimings()
        result = _result(order, shared, prepare, timings)
        reports.append(Report(order.number, result, timings.seconds))
        if len(reports) >= REPORT_SIZE or time.monotonic() - since > REPORT_S:
            connection.send(reports)
            reports, since = [], time.monotonic()
    if reports:
        connection.send(reports)


def _result(
    order: Order, shared: Shared, prepare: Prepare, timings: StageTimings
) -> Prepared | Exception:
    try:
        prepared, shared.cells[order.cell] = prepare(order.request, timings)
        return prepared
    except (Failed, Unchanged, DetailsChanged, MemoryError) as error:
        return error
    except Exception as error:  # of any class, which the worker may not be able to unpickle
        return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_worker() -> None:
    """End the process when the worker has ended, also by a signal that it cannot handle."""
    worker = parent_process()
    if worker is not None:
        wait([worker.sentinel])
        os._exit(0)
