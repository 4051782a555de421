"""What the machine of a process has."""

import math
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def cores() -> int:
    """The number of CPU cores that this process may use: those of its affinity, or fewer if its
    container has a quota (cgroup v2), rounded up."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return max(1, math.ceil(min(len(allowed) or os.cpu_count() or 1, cpu_quota())))


def cpu_quota(own: Path = OWN_CGROUP, root: Path = CGROUPS) -> float:
    """The CPU quota of this process in cores, the smallest of its cgroups; infinite without one.

    Args:
        own: the file that names the cgroup of this process.
        root: the folder of the cgroups.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return math.inf
    group = PurePosixPath(path.lstrip("/"))
    quotas = [math.inf]
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # no such file, or "max"
            quota, period = (root / folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
    return min(quotas)


def shares(total: int, parts: int) -> list[int]:
    """Divide cores among processes of one machine; each gets one at least."""
    return [max(1, total // parts + (part < total % parts)) for part in range(parts)]


def gpus(devices: Path = Path("/dev")) -> int:
    """The number of NVIDIA GPUs that the driver shows, even if this torch cannot use them."""
    return len(list(devices.glob("nvidia[0-9]*")))
