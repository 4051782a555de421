"""How many images the planner puts into a chunk."""

from collections.abc import Sequence

from clipfleet.common.fleet import WorkerCard
from clipfleet.common.ledger import OpenChunk

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


def has_room(chunks: Sequence[OpenChunk], workers: int, size: int) -> bool:
    """Whether another chunk of that size may be open.

    Images count, not chunks: of one that waits for a slow server little may be left.
    """
    window = max(4, 2 * workers + 2)
    return len(chunks) < 4 * window and sum(chunk.size for chunk in chunks) <= (window - 1) * size
