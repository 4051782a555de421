"""Room for the memory that feeders share with their worker.

`multiprocessing` puts it into /dev/shm, and into the temporary folder what does not fit there.
"""

import logging
import shutil
import tempfile
from pathlib import Path

from clipfleet.common.errors import StartupError

log = logging.getLogger(__name__)

SHM = Path("/dev/shm")


def require_room(count: int, size: int) -> None:
    """Check that there is room, and log a warning if it is not in /dev/shm.

    A page without room ends the worker with SIGBUS when it is first written.

    Args:
        count: the number of feeders.
        size: the bytes that each shares with the worker.

    Raises:
        StartupError: neither /dev/shm nor the temporary folder has enough room.
    """
    if not SHM.is_dir():  # not on Linux
        return
    free, folder = shutil.disk_usage(SHM).free, tempfile.gettempdir()
    fitting = min(count, free // size)
    if fitting == count:
        return
    rest, room = (count - fitting) * size, shutil.disk_usage(folder).free
    what = (
        f"{count} feeders share {count * size / 1e6:.1f} MB with their worker, and /dev/shm has "
        f"{free / 1e6:.1f} MB free"
    )
    do = (
        "make /dev/shm larger (docker run --shm-size, Kubernetes: an emptyDir with medium Memory), "
        f"or set CLIPFLEET_FEEDERS={max(1, fitting)}"
    )
    if room < rest:
        raise StartupError(f"{what}, {folder} {room / 1e6:.1f} MB: {do}")
    log.warning(
        "%s: %.1f MB of it lie in %s, which may be a disk; %s", what, rest / 1e6, folder, do
    )
