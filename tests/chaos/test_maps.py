"""kill -9 of a worker while it makes a map: another one makes it."""

import numpy as np

from clipfleet import Client
from support import chaos, services, stack

COUNT = 3_000


def test_a_map_survives_the_sudden_death_of_its_worker(slow_stack: chaos.Up) -> None:
    with slow_stack.client() as client:
        dim = client.create_collection("mapped").dim
        rows = np.random.default_rng(0).normal(size=(COUNT, dim)).astype(np.float32)
        client.upsert("mapped", ({"id": f"{n}", "values": row} for n, row in enumerate(rows)))
        job = client.make_map("mapped")
        services.eventually(lambda: only_the_end_is_left(client, job.id), chaos.END_S, "all chunks")
        victim = slow_stack.part("worker-ingest-1")
        victim.kill()
        chaos.restarted(slow_stack, "worker-ingest-1", victim.pid)
        ended = stack.finished(client, job.id, chaos.END_S)
        assert (ended.state, ended.done, ended.failed) == ("succeeded", COUNT, 0)
        known = client.map_of("mapped")
        assert (known.map_id, known.points) == (job.id, COUNT)
        assert len(set(client.map_points("mapped").ids)) == COUNT


def only_the_end_is_left(client: Client, job_id: str) -> bool:
    job = client.job(job_id)
    return job.total == COUNT and job.done >= COUNT - 1
