"""What the machine of a process has."""

import os
from pathlib import Path


def cores() -> int:
    """The number of CPU cores that this process may use. A container's quota is not considered."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(devices: Path = Path("/dev")) -> int:
    """The number of NVIDIA GPUs that the driver shows, even if this torch cannot use them."""
    return len(list(devices.glob("nvidia[0-9]*")))
