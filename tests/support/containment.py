"""A process as the containers of deploy/ have it: / is read-only, and it has no capabilities.

In place of a container: a mount namespace of its own. It may write one folder and the blobs.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ENTER = """
mount --bind "$1" "$1" && mount --bind "$2" "$2" && mount -o remount,ro,bind / || exit 1
mount -o remount,ro,bind /tmp 2>/dev/null
cd "$1" && shift 2
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def contained(folder: Path, blobs: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` contained, with `folder` as its working directory."""
    namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]
    return [*namespace, str(folder), str(blobs), *command]


def hindrance(folder: Path) -> str:
    """Why nothing can be contained on this machine. Empty if it can."""
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        return "no unshare or setpriv: util-linux has them"
    trial = contained(folder, folder, ["true"])
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        return "mount namespaces are not permitted here"
    return ""
