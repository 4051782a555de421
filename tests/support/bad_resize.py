"""A `Resize` for feeders: images of some widths end, stop or fail the process that resizes them."""

import os
import signal
import time

from PIL import Image

from clipfleet.common.imaging.preprocess import Pixels, by_pillow

CRASH, KILL, HANG, FULL, BUG = 31, 32, 33, 34, 35  # widths, pixels


def resize(image: Image.Image, width: int, height: int, how: Image.Resampling) -> Pixels:
    match image.width:
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
    return by_pillow(image, width, height, how)
