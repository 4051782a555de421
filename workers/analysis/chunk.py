"""Works on a claimed chunk of stored images: read their rows, call the task, mark."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

from clipfleet.common.ledger import Claim, Failure, Ledger, Outcome
from clipfleet.common.ledger.stored_images import is_last, key_of
from clipfleet.common.store import Record
from clipfleet.common.store.filters import parse_filter
from clipfleet.common.store.rows import rows_per_message
from clipfleet.workers.analysis.task import Refused, Run, Task

MIN_MEASURED_S = 0.01  # a shorter time counts as this long in the rate


class StoredChunk:
    """Works on the stored images of one claim, once.

    Args:
        ledger: gets the outcome.
        claim: the claim.
        run: what the task needs.
        tasks: the tasks by name.
    """

    def __init__(self, ledger: Ledger, claim: Claim, run: Run, tasks: Mapping[str, Task]) -> None:
        self._ledger, self._claim, self._run, self._tasks = ledger, claim, run, tasks

    def run(self) -> None:
        """Call the task and mark the chunk in the ledger.

        Raises:
            Refused: the job cannot be done.
            CollectionGone: the collection was deleted.
            Interrupted: the claim is lost, or a service is unavailable and the worker stops.
        """
        began, task, items = time.monotonic(), self._task(), self._claim.items
        rows = self._rows([pk for item in items if (pk := key_of(item))])
        changed = task.work(self._run, rows) if rows else 0
        if any(map(is_last, items)):
            self._run.lease.progress()
            task.finish(self._run)
        self._run.lease.progress()
        seconds = max(time.monotonic() - began, MIN_MEASURED_S)
        failures = self._failures()
        skipped = len(items) - changed - len(failures)
        outcome = Outcome(changed, skipped, failures, rate=len(items) / seconds)
        self._run.patiently(lambda: self._ledger.mark(self._claim, outcome))

    def _failures(self) -> tuple[Failure, ...]:
        reasons = self._run.failures
        return tuple(
            Failure.of(item, "store", reasons[key_of(item)], self._claim.attempt)
            for item in self._claim.items
            if key_of(item) in reasons
        )

    def _task(self) -> Task:
        name = str(self._run.job.new.source.get("task"))
        if name not in self._tasks:
            raise Refused(f"this release has no task {name!r} over stored images")
        return self._tasks[name]

    def _rows(self, keys: Sequence[str]) -> list[Record]:
        """The rows in the order of their keys, read in messages of a bearable size.

        The keys of a chunk follow each other in the collection, and milvus-lite reads a range of
        keys three times as fast as a list of keys.
        """
        run, rows = self._run, dict[str, Record]()
        step = rows_per_message(run.collection.dim)
        for start in range(0, len(keys), step):
            part = keys[start : start + step]
            wanted = set(part)
            ranged = run.patiently(partial(self._range, part[0], len(part)))
            rows |= {row.pk: row for row in ranged if row.pk in wanted}
            if missing := [pk for pk in part if pk not in rows]:
                rows |= run.patiently(partial(run.store.fetch, run.collection, missing))
            run.lease.progress()
        return [rows[pk] for pk in sorted(rows)]

    def _range(self, first: str, limit: int) -> list[Record]:
        """The rows of the job's source from a key on."""
        run, source = self._run, self._run.job.new.source
        number = int(first, 16)
        return run.store.scan(
            run.collection,
            namespace=source["namespace"],
            where=parse_filter(source["filter"] or {}, run.collection.fields),
            after=f"{number - 1:032x}" if number else "",
            limit=limit,
            include_values=True,
        )
