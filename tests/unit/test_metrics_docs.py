"""docs/metrics.md lists every metric with its labels, and no other."""

import re
from pathlib import Path

from clipfleet.api.ops.metrics import GatewayMetrics
from clipfleet.common.ledger import Failure, Outcome
from clipfleet.common.process.metrics import make_registry
from clipfleet.workers.metrics import PlannerMetrics, WorkerMetrics
from support.coalescer_harness import MODEL, Desk, played
from support.overviews import SEEN, ScriptedOverviews
from support.prometheus import Scrape, scraped

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def gateway() -> Scrape:
    metrics, desk = GatewayMetrics(), Desk()
    played(lambda: _ask(desk))
    metrics.watch(ScriptedOverviews(lambda: SEEN), [desk.queries], MODEL)
    metrics.answered("GET", "/", 200, 0.1)
    metrics.timed("/", {"total": 0.1}, "request")
    return scraped(metrics.registry)


async def _ask(desk: Desk) -> None:
    await desk.ask("a")


def worker() -> Scrape:
    metrics = WorkerMetrics(make_registry())
    metrics.watch_cache("text", int, int)
    metrics.batch("query", 1)
    metrics.set_concurrency({"decode": 3})
    with metrics.timed("query", "model"):
        metrics.marked(Outcome(failures=(Failure(id="", uri="", reason="", stage="read"),)))
    return scraped(metrics.registry)


def labels_of(seen: Scrape) -> dict[str, set[str]]:
    """Labels of each metric, by the name used in queries: counters end in _total, histograms have
    no suffix."""
    labels: dict[str, set[str]] = {}
    for name, family in seen.ours.items():
        whole = f"{name}_total" if family.type == "counter" else name
        for sample in family.samples:
            labels.setdefault(whole, set()).update(sample.labels.keys() - {"le"})
    return labels


def test_the_page_has_all_metrics_with_their_labels_and_no_others() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    documented = re.findall(r"`(clipfleet_\w+)(?:\{([^}]*)\})?`", " ".join(rows))
    shown = {name: _names(labels) for name, labels in documented}
    planner = labels_of(scraped(PlannerMetrics(make_registry()).registry))
    assert shown == planner | labels_of(gateway()) | labels_of(worker())


def _names(labels: str) -> set[str]:
    return {pair.split("=")[0] for pair in labels.split(",") if pair}
