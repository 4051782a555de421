"""A gateway whose parts are in memory and whose schedules have a clock that a test sets."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipfleet.api.sources.scheduler import Scheduler
from clipfleet.common.ledger import FINAL, Job
from clipfleet.common.ledger.memory import MemoryLedger
from clipfleet.common.ledger.registered import MemoryRegistry, RegisteredSource
from support.gateway_harness import World
from support.ledgers import Clock

FOLDER = {"source": {"type": "folder", "path": "/pictures"}}


@dataclass
class Scheduling:
    """A scheduler. Keys as of `World`; sources are those of the collection "acme"."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    registry: Any = None  # in place of one in memory

    def __post_init__(self) -> None:
        self.registry = self.registry or MemoryRegistry(self.clock)
        self.ledger = MemoryLedger(self.clock)
        parts = {"registry": self.registry, "ledger": self.ledger}
        settings = {"source_roots": ["/pictures"], **self.settings}
        self.world = World(self.folder, parts, **settings)
        self.scheduler = Scheduler(self.world.app.state.gateway, self.world.app.state.access)

    def put(self, name: str = "s", key: str = "admin", **body: Any) -> dict[str, Any]:
        path = f"PUT /v1/collections/acme/sources/{name}"
        answer = self.world.ask(path, key, json={**FOLDER, **body})
        assert answer.status_code in (200, 201), answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def show(self, name: str = "s") -> dict[str, Any]:
        answer = self.world.ask(f"GET /v1/collections/acme/sources/{name}", "admin")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def record(self, name: str = "s") -> RegisteredSource:
        record: RegisteredSource | None = self.registry.find("acme", name)
        assert record
        return record

    def later(self, seconds: float = 0.0) -> list[str]:
        """Let time pass, run a round, and return the ids of the jobs that it created."""
        self.clock.now += seconds
        before = {job.id for job in self.jobs()}
        self.scheduler.round()
        return [job.id for job in self.jobs() if job.id not in before]

    def jobs(self) -> list[Job]:
        """The jobs of sources, the oldest first."""
        jobs = self.ledger.jobs(limit=1_000, collection="acme")
        return [job for job in reversed(jobs) if job.id != "job-acme"]

    def end(self, job_id: str = "", error: str = "") -> None:
        """End a job that is under way: the last one, or one by its id."""
        job_id = job_id or [job.id for job in self.jobs() if job.state not in FINAL][-1]
        lease = self.ledger.lease(job_id, "p", 30)
        assert lease
        assert self.ledger.finish_planning(job_id, lease.token, "", error)

    def write_keys(self, **changes: dict[str, Any] | None) -> None:
        """Change keys of the keys file by their names; None: revoke."""
        file = self.folder / "keys.json"
        keys = json.loads(file.read_text())["keys"]
        kept = [key for key in keys if changes.get(key["name"], {}) is not None]
        new = [{**key, **(changes.get(key["name"]) or {})} for key in kept]
        file.write_text(json.dumps({"keys": new}))
        ring: Any = self.world.app.state.access._ring
        ring._checked_at = float("-inf")
