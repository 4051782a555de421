"""kill -9 of feeders, and of the server that starts them, while a job runs."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from support import chaos, services, stack


def fork_servers(up: chaos.Up) -> list[psutil.Process]:
    """The process of the ingest worker that starts its feeders."""
    return up.part("worker-ingest-1").children()


def feeders(up: chaos.Up) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [feeder for server in fork_servers(up) for feeder in server.children()]
    return []


@contextmanager
def killing(victims: Callable[[], list[psutil.Process]]) -> Iterator[set[int]]:
    """Kill what `victims` returns again and again until the block ends; the ids of the killed."""
    over, killed = threading.Event(), set[int]()

    def run() -> None:
        while not over.wait(0.3):
            for process in victims():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.add(process.pid)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_feeders_that_are_killed_all_the_time_cost_no_image(
    slow_stack: chaos.Up, tmp_path: Path
) -> None:
    many = chaos.many_photos(tmp_path / "many", 1_000)
    worker = slow_stack.part("worker-ingest-1")
    with slow_stack.client() as client:
        client.create_collection("killed-feeders")
        job = client.index("killed-feeders", many).id
        with killing(lambda: feeders(slow_stack)) as killed:
            services.eventually(lambda: len(killed) > 3 or None, 60, "dead feeders")
            stack.finished(client, job, chaos.END_S)
    assert slow_stack.part("worker-ingest-1").pid == worker.pid
    chaos.require_exact(slow_stack, job, "killed-feeders", 1_000)


def test_a_job_survives_the_death_of_the_fork_server(slow_stack: chaos.Up, photos: Path) -> None:
    with chaos.held_job(slow_stack, "fork-server", photos) as job:
        for process in [*fork_servers(slow_stack), *feeders(slow_stack)]:
            process.kill()
    chaos.require_exact(slow_stack, job, "fork-server")


def test_a_killed_worker_takes_its_feeders_along(slow_stack: chaos.Up, photos: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    worker = slow_stack.part("worker-ingest-1")
    with chaos.held_job(slow_stack, "killed-worker", photos) as job:
        family = worker.children(recursive=True)
        assert family
        worker.kill()
        services.eventually(
            lambda: not any(process.is_running() for process in family), 30, "the feeders' end"
        )
    chaos.restarted(slow_stack, "worker-ingest-1", worker.pid)
    chaos.require_exact(slow_stack, job, "killed-worker")
    assert set(os.listdir("/dev/shm")) <= before
