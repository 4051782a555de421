"""A `Preprocess` for feeders: images of some widths end, stop or fail the process."""

import os
import signal
import time

from clipfleet.common.imaging.preprocess import Pixels, Preprocess

CRASH, KILL, HANG, FULL, BUG = 31, 32, 33, 34, 35  # widths, pixels


class BadPreprocess(Preprocess):
    def apply(self, image: Pixels) -> Pixels:
        match image.shape[1]:
            case 31:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 32:  # as the kernel does when the memory is full
                os.kill(os.getpid(), signal.SIGKILL)
            case 33:
                time.sleep(3_600)
            case 34:
                raise MemoryError
            case 35:
                raise ZeroDivisionError("a bug")
        return super().apply(image)
