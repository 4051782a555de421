"""Virtual environments for the programs that clipfleet is compared with."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def environment(folder: Path, *packages: Sequence[str]) -> Path:
    """Create a virtual environment, unless it is there, and return its Python.

    Args:
        folder: where it is.
        packages: arguments of `pip install`, one call each, after torch in the version of
            constraints.txt.
    """
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        for arguments in (["-c", str(CONSTRAINTS), "torch"], *packages):
            subprocess.run([*install, *arguments], check=True)
        done.touch()
    return python
