"""Lays points out in two dimensions with PaCMAP, in a process of its own.

PaCMAP holds Python for seconds at a time, seeds NumPy's global generator, and brings native
libraries: in a worker's process, leases could not be renewed meanwhile. `python -m` of this module
is that process.
"""

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipfleet.common.store import Vectors

FEWEST = 12  # PaCMAP needs some neighbours, and pairs of images that are none
NEIGHBOURS = 5  # of the images beside the sample, whose places they take the mean of
POLL_S = 0.2
LAST_WORDS = 400  # characters of what a process wrote before it failed


class ProjectionFailed(Exception):
    """The process of PaCMAP has ended without a result. The text says why."""


def has_pacmap() -> bool:
    """Whether the extra `map` is installed."""
    return all(importlib.util.find_spec(name) for name in ("pacmap", "sklearn"))


def project(rows: Vectors, seed: int, alive: Callable[[], None]) -> Vectors:
    """Lay points out in two dimensions, so that near ones stay near.

    Args:
        rows: the points, float32 [n, k], by their first principal components. At least FEWEST.
        seed: the same seed and points give the same layout.
        alive: called five times a second; what it raises ends the process, and passes through.

    Returns:
        float32 [n, 2].

    Raises:
        ProjectionFailed: the process has failed.
    """
    with tempfile.TemporaryDirectory(prefix="clipfleet-map-") as folder:
        source, target = Path(folder, "rows.npy"), Path(folder, "points.npy")
        np.save(source, rows)
        command = [sys.executable, "-m", __name__, str(source), str(target), str(seed)]
        with (
            Path(folder, "errors").open("w+b") as errors,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
            ) as process,
        ):
            try:
                while process.poll() is None:
                    alive()
                    time.sleep(POLL_S)
            finally:
                process.kill()
            if process.returncode != 0 or not target.exists():
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip()[-LAST_WORDS:]
                raise ProjectionFailed(f"PaCMAP ended with {process.returncode}: {words}")
        points: Vectors = np.load(target)
    return points


def place(rows: Vectors, among: Vectors, points: Vectors) -> Vectors:
    """Places of further points: the mean of those of their nearest neighbours, weighted.

    A neighbour counts by the inverse of its squared distance.

    Args:
        rows: the further points, float32 [n, k].
        among: the points that have places, float32 [m, k].
        points: their places, float32 [m, 2].
    """
    from sklearn.neighbors import NearestNeighbors

    if not len(rows):
        return np.zeros((0, 2), np.float32)
    search: Any = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(among)), algorithm="brute")
    distances, places = search.fit(among).kneighbors(rows)
    weights = 1 / np.maximum(distances, 1e-6) ** 2
    weights /= weights.sum(1, keepdims=True)
    return np.asarray((points[places] * weights[:, :, None]).sum(1), np.float32)


def main(source: str, target: str, seed: str) -> None:
    """Lay out the points of a file, for `project`."""
    import pacmap

    rows = np.load(source)
    neighbours = max(2, min(10, len(rows) // 4))
    layout = pacmap.PaCMAP(
        n_components=2,
        n_neighbors=neighbours,
        random_state=int(seed),
        apply_pca=False,
    )
    points = layout.fit_transform(rows, init=np.ascontiguousarray(rows[:, :2]))
    np.save(target, np.asarray(points, np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
