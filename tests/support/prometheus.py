"""Metrics of a process as Prometheus reads them, by name and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families


@dataclass
class Scrape:
    families: list[Metric]

    @property
    def ours(self) -> dict[str, Metric]:
        return {
            family.name: family for family in self.families if family.name.startswith("clipfleet_")
        }

    def value(self, name: str, /, **labels: str) -> float | None:
        """The value of the series with exactly these labels, or None."""
        series = self.all(name, **labels)
        exact = [value for own, value in series if len(own) == len(labels)]
        return exact[0] if exact else None

    def total(self, name: str, /, **labels: str) -> float:
        """The sum of all series that have these labels."""
        return sum(value for _, value in self.all(name, **labels))

    def all(self, name: str, /, **labels: str) -> list[tuple[Mapping[str, str], float]]:
        return [
            (sample.labels, sample.value)
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]


def scraped(registry: Any) -> Scrape:
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Scrape:
    return Scrape(list(text_string_to_metric_families(text)))


def scrape(url: str) -> Scrape:
    answer = httpx.get(f"{url}/metrics", trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parsed(answer.text)


def faults(scrape: Scrape) -> list[str]:
    """Names that break rules of `promtool check metrics`."""
    problems = []
    for name, family in scrape.ours.items():
        names = {sample.name for sample in family.samples}
        if not family.documentation:
            problems.append(f"{name} has no help")
        if family.type == "counter" and names - {f"{name}_total"}:
            problems.append(f"the counter {name} does not end in _total")
        if family.type != "counter" and any(sample.endswith("_total") for sample in names):
            problems.append(f"{name} ends in _total and is no counter")
        if any(unit in name for unit in ("_ms", "_milliseconds", "_minutes", "_kb", "_percent")):
            problems.append(f"{name} is not in a base unit")
        if family.type == "unknown":
            problems.append(f"{name} has no type")
    return problems
