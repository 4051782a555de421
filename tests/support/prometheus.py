"""What Prometheus would read from one of our processes, by name and labels."""

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
        return {one.name: one for one in self.families if one.name.startswith("clipfleet_")}

    def value(self, name: str, /, **labels: str) -> float | None:
        """Of the one series with exactly these labels; None when there is none."""
        found = self.all(name, **labels)
        exact = [value for given, value in found if len(given) == len(labels)]
        return exact[0] if exact else None

    def total(self, name: str, /, **labels: str) -> float:
        """Of all series that have these labels."""
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
    """Where names break the rules that `promtool check metrics` holds them to."""
    found = []
    for name, family in scrape.ours.items():
        names = {sample.name for sample in family.samples}
        if not family.documentation:
            found.append(f"{name} has no help")
        if family.type == "counter" and names - {f"{name}_total"}:
            found.append(f"the counter {name} does not end in _total")
        if family.type != "counter" and any(one.endswith("_total") for one in names):
            found.append(f"{name} ends in _total and is no counter")
        if any(unit in name for unit in ("_ms", "_milliseconds", "_minutes", "_kb", "_percent")):
            found.append(f"{name} is not in a base unit")
        if family.type == "unknown":
            found.append(f"{name} has no type")
    return found
