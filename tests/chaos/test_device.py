"""A worker whose device breaks while it works: no image is blamed, and a new process goes on."""

from pathlib import Path

import services
import stack
from chaos import work


def test_a_worker_whose_device_is_broken_ends_itself_until_it_is_whole_again(
    slow: stack.Up, photos: Path
) -> None:
    job = work.begin(slow, "broken", photos)
    worker = slow.part("worker-ingest-1")
    with slow.client() as client, work.breaking(slow):
        second = work.restarted(slow, "worker-ingest-1", worker.pid)
        work.restarted(slow, "worker-ingest-1", second.pid)
        services.eventually(lambda: work.says(client, job, "is broken"), 60, "a reason")
    assert "(exit code 72); it starts again" in (slow.folder / "up.log").read_text()
    log = slow.log("worker-ingest-1")
    assert "CUDA error: device-side assert triggered: this worker ends itself" in log
    work.require_exact(slow, job, "broken")
