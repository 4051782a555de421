"""How long a map takes: principal components and PaCMAP of random clusters.

    python benchmarks/map.py [--points 20000] [--dim 512]

Times what the finishing step of the job does, without the store and the blobs. The agreement is the
share of points whose nearest neighbour on the map is of the same cluster.
"""

import argparse
import resource
import time

import numpy as np

from clipfleet.common.store import Vectors
from clipfleet.workers.analysis.map import COMPONENTS, SAMPLE
from clipfleet.workers.analysis.pca import StreamedPca, in_unit_square, of_length_one
from clipfleet.workers.analysis.projection import place, project

KINDS, BATCH, COMPARED = 60, 2_000, 2_000


def agreement(points: Vectors, kinds: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> float:
    """The share of the first points whose nearest other point is of their kind."""
    right = 0
    for n in range(min(COMPARED, len(points))):
        distances = ((points - points[n]) ** 2).sum(1)
        distances[n] = np.inf
        right += int(kinds[distances.argmin()] == kinds[n])
    return right / min(COMPARED, len(points))


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--points", type=int, default=20_000)
    arguments.add_argument("--dim", type=int, default=512)
    chosen = arguments.parse_args()
    numbers = np.random.default_rng(0)
    centres = numbers.normal(size=(KINDS, chosen.dim))
    kinds = numbers.integers(0, KINDS, chosen.points)
    noise = numbers.standard_normal((chosen.points, chosen.dim), np.float32)
    rows = of_length_one(centres[kinds].astype(np.float32) + 1.2 * noise)
    began = time.perf_counter()
    pca = StreamedPca(chosen.dim)
    for start in range(0, len(rows), BATCH):
        pca.add(rows[start : start + BATCH])
    reduced = pca.reduction(COMPONENTS).apply(rows)
    by_pca = in_unit_square(reduced[:, :2])
    took = time.perf_counter() - began
    print(f"pca: {took:.1f} s, agreement {agreement(by_pca, kinds):.2f}")
    began = time.perf_counter()
    sample = reduced[:SAMPLE]
    points = project(sample, 0, lambda: None)
    took = time.perf_counter() - began
    further = place(reduced[SAMPLE:], sample, points)
    whole = time.perf_counter() - began
    both = np.concatenate([points, further])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"pacmap: {took:.1f} s for {len(sample)} points, {whole - took:.1f} s for the others, "
        f"agreement {agreement(in_unit_square(both), kinds):.2f}, its process {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
