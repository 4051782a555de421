"""How many images the planner puts into a chunk."""

from collections.abc import Sequence

from clipfleet.common.queue.fleet import WorkerCard

FIRST_CHUNK, SMALLEST_CHUNK, LARGEST_CHUNK = 32, 8, 2_048
CHUNKS_PER_WORKER = 16  # that a job has at least, where several share it
# A chunk has the work of so many seconds all the same. With smaller ones, four workers on one GPU
# indexed 2,754 images/s instead of 4,128.
LEAST_S = 0.5


def chunk_size(
    workers: Sequence[WorkerCard], seconds: float, rate: float = 0.0, planned: int = 0
) -> int:
    """The number of images that a worker indexes in the time that a chunk should take.

    Several workers share a job of unknown length. A chunk is at most a sixteenth of each worker's
    part of what has been planned so far, or the work of half a second, so chunks grow with the job
    and the workers end their last ones at about the same time.

    Args:
        workers: the live workers of the job's model.
        seconds: the time that a chunk should take.
        rate: images per second of the job's last chunks. While it is 0 (unknown), the slowest
            worker's own rate counts.
        planned: the number of the job's images that have been planned so far.
    """
    rates = [rate] if rate else [worker.rate for worker in workers if worker.rate]
    if not rates:
        return FIRST_CHUNK
    largest = LARGEST_CHUNK
    if len(workers) > 1:  # by rate alone, two workers took 1.6 times as long as one
        share = planned // (CHUNKS_PER_WORKER * len(workers))
        largest = min(largest, max(FIRST_CHUNK, share, int(min(rates) * LEAST_S)))
    return max(SMALLEST_CHUNK, min(largest, int(min(rates) * seconds)))


def room_for(chunks: int, images: int, workers: int, size: int) -> int:
    """The number of further chunks of this size that may be opened for a job.

    Images count rather than chunks: a chunk that waits for a slow server may have few images left.

    Args:
        chunks: the number of open chunks.
        images: the number of images in the open chunks.
        workers: the number of live workers of the job's model.
        size: the number of images in a new chunk.
    """
    window = max(4, 3 * workers + 1)  # a worker has two in hand
    return max(0, min(4 * window - chunks, ((window - 1) * size - images) // size + 1))
