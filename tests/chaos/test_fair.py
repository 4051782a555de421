"""A small job beside a large one: through the real queue, in the order that was meant."""

from pathlib import Path

from support import chaos, services, stack


def test_a_small_job_overtakes_what_a_large_one_has_waiting(
    slow_stack: chaos.Up, photos: Path, tmp_path: Path
) -> None:
    few = chaos.many_photos(tmp_path / "few", chaos.CHUNK)
    with slow_stack.client() as client, chaos.ledger(slow_stack) as ledger:
        with slow_stack.gate.closed():
            large = client.index("large", photos)
            slow_stack.gate.wait()
            services.eventually(
                lambda: len(ledger.open_chunks(large.id)) == 4, 30, "the large job's window"
            )
            largest = max(chunk.size for chunk in ledger.open_chunks(large.id))
            small = client.index("small", few)
            services.eventually(lambda: ledger.open_chunks(small.id), 30, "the small job's chunk")
        assert stack.finished(client, small.id).done == chaos.CHUNK
        assert stack.finished(client, large.id).state == "succeeded"
        first = client.image("small", next(client.iter_ids("small"))).indexed_at
        before = client.count("large", filter={"indexed_at": {"$lt": first}})
        assert before <= 3 * largest, "the two chunks in hand, and the large job's turn"
