"""Settings of the Python interpreter for a part that runs for long and answers while it works."""

import gc
import sys

# The interpreter's switch interval in seconds (default 0.005). While another thread builds a large
# answer, a small query waits this long each time that it needs the interpreter again.
SWITCH_INTERVAL_S = 0.0005


def prepare_interpreter() -> None:
    """Shorten the waits of threads for each other. Call it when the part has loaded everything.

    A full garbage collection looks at every object. Those of the modules and of a model, which live
    as long as the process, make it last 260 ms in a worker; they are left out from now on.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
