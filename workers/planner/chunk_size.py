"""How many images the planner puts into a chunk."""

from collections.abc import Sequence

from clipfleet.common.queue.fleet import WorkerCard

FIRST_CHUNK, SMALLEST_CHUNK, LARGEST_CHUNK = 32, 8, 512


def chunk_size(workers: Sequence[WorkerCard], seconds: float, rate: float = 0.0) -> int:
    """As many as a worker does in the time a chunk should take.

    Args:
        rate: images a second of the job's own last chunks. Until it is known, those of the workers
            count, whatever they work on.
    """
    rates = [rate] if rate else [worker.rate for worker in workers if worker.rate]
    if not rates:
        return FIRST_CHUNK
    return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, int(min(rates) * seconds)))


def room_for(chunks: int, images: int, workers: int, size: int) -> int:
    """How many more chunks of that size may be open.

    Images count, not chunks: of one that waits for a slow server little may be left.

    Args:
        chunks: that are open.
        images: in them.
    """
    window = max(4, 2 * workers + 2)
    return max(0, min(4 * window - chunks, ((window - 1) * size - images) // size + 1))
