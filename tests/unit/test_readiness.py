"""Whether a service is ready, asked by many at once."""

import asyncio
from pathlib import Path

import httpx

from clipfleet.common.process.probe import MemoryProbe
from support.gateway_harness import HERE, World


class Counting(MemoryProbe):
    writes = 0

    def write(self) -> None:
        self.writes += 1


def test_many_who_ask_at_once_cost_one_look(tmp_path: Path) -> None:
    """It needs no key, and each look asks Redis and the store."""
    probe = Counting()
    world = World(tmp_path, {"probe": probe})

    async def ask() -> set[str]:
        there = httpx.ASGITransport(world.app, client=HERE)
        async with httpx.AsyncClient(transport=there, base_url="http://127.0.0.1:8000") as http:
            answers = await asyncio.gather(*(http.get("/readyz") for _ in range(50)))
        return {answer.text for answer in answers}

    (same,) = asyncio.run(ask())
    assert "planner" in same
    assert probe.writes == 1
