"""A worker whose device breaks while it works: no image is blamed, and a new process goes on."""

from pathlib import Path

from support import chaos, services


def test_a_worker_whose_device_is_broken_ends_itself_until_it_is_whole_again(
    slow_stack: chaos.Up, photos: Path
) -> None:
    worker = slow_stack.part("worker-ingest-1")
    with (
        chaos.held_job(slow_stack, "broken", photos) as job,
        slow_stack.client() as client,
        slow_stack.gate.broken_device(),
    ):
        slow_stack.gate.open()
        second = chaos.restarted(slow_stack, "worker-ingest-1", worker.pid)
        chaos.restarted(slow_stack, "worker-ingest-1", second.pid)
        services.eventually(lambda: chaos.says(client, job, "is broken"), 60, "a reason")
    assert "(exit code 72); it starts again" in (slow_stack.folder / "up.log").read_text()
    log = slow_stack.log("worker-ingest-1")
    assert "CUDA error: device-side assert triggered: this worker exits" in log
    chaos.require_exact(slow_stack, job, "broken")
