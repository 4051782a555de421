"""The Prometheus configuration and the dashboard name only metrics and labels that exist."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from clipfleet.api.ops.metrics import GatewayMetrics
from clipfleet.common.queue.overview import Overview, Waiting
from clipfleet.workers.metrics import PlannerMetrics, WorkerMetrics
from support import deployment
from support.deployment import DEPLOY, KUBERNETES

PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "clipfleet.json").read_text())
# What the parts show, with the labels of each.
METRICS = {
    "clipfleet_redis_up": set(),
    "clipfleet_work_left": {"model"},
    "clipfleet_jobs": {"state"},
    "clipfleet_queue_messages": {"lane", "model"},
    "clipfleet_queue_age_seconds": {"lane", "model"},
    "clipfleet_workers": {"lane", "model"},
    "clipfleet_requests_total": {"method", "route", "status"},
    "clipfleet_request_seconds": {"route"},
    "clipfleet_query_seconds": {"route", "stage"},
    "clipfleet_queries_waiting": {"model"},
    "clipfleet_queries_in_flight": set(),
    "clipfleet_refused_total": {"reason"},
    "clipfleet_stage_seconds": {"lane", "stage"},
    "clipfleet_batch_size": {"lane"},
    "clipfleet_images_total": {"result"},
    "clipfleet_image_failures_total": {"reason"},
    "clipfleet_cache_hits_total": {"cache"},
    "clipfleet_cache_misses_total": {"cache"},
    "clipfleet_in_flight": {"lane"},
    "clipfleet_chunk_seconds": set(),
    "clipfleet_stage_concurrency": {"stage"},
    "clipfleet_device_starved_seconds_total": set(),
    "clipfleet_feeder_restarts_total": {"reason"},
    "clipfleet_planned_items_total": set(),
    "clipfleet_nudges_sent_total": set(),
    "clipfleet_chunks_requeued_total": set(),
    "clipfleet_webhook_tries_total": {"state"},
    "clipfleet_jobs_leased": set(),
}
HISTOGRAMS = {
    "clipfleet_request_seconds",
    "clipfleet_query_seconds",
    "clipfleet_stage_seconds",
    "clipfleet_batch_size",
    "clipfleet_chunk_seconds",
}


class Fleet:
    """An overview of one model with some work."""

    def read(self) -> Overview:
        return Overview(
            {"running": 1}, {"m": 7}, {("ingest", "m"): Waiting(1, 2.0)}, {("ingest", "m"): 1}
        )


def registries() -> list[CollectorRegistry]:
    """The registries of one gateway, planner and worker, each with a value for every metric."""
    gateway, planner, worker = GatewayMetrics(), PlannerMetrics(), WorkerMetrics()
    gateway.watch(Fleet(), [], "m")
    gateway.answered("GET", "/v1/jobs", 200, 0.1)
    gateway.timed("/v1/embed", {"total": 0.1}, "request")
    with worker.timed("ingest", "read"):
        worker.batch("ingest", 3)
    worker.chunk(1.0)
    worker.failed("decode")
    worker.set_concurrency({"decode": 3})
    worker.watch_cache("text", lambda: 1, lambda: 1)
    return [gateway.registry, planner.registry, worker.registry]


def test_the_parts_show_these_metrics_with_these_labels() -> None:
    shown: dict[str, set[str]] = {}
    for family in (family for registry in registries() for family in registry.collect()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith("clipfleet_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            shown.setdefault(name, set()).update(labels)
    shown["clipfleet_queries_waiting"] |= {"model"}  # there are no queries here
    assert shown == METRICS


def dashboard() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def alerts() -> list[dict[str, Any]]:
    (rules,) = deployment.documents(PROMETHEUS / "alerts.yml")
    return [rule for group in rules["groups"] for rule in group["rules"]]


def selectors() -> list[str]:
    triggers = (KUBERNETES / "components" / "keda").glob("*.yaml")
    return [
        location
        for path in triggers
        for location in re.findall(r"valueLocation: (.*)", path.read_text())
    ]


EXPRESSIONS = [*dashboard(), *(rule["expr"] for rule in alerts()), *selectors()]


def metric(name: str) -> str:
    """The name of a metric without the suffix of a histogram's series."""
    bare = re.sub(r"_(bucket|sum|count)$", "", name)
    return bare if bare in HISTOGRAMS else name


def named(expression: str) -> set[str]:
    return {metric(name) for name in re.findall(r"clipfleet_\w+", expression)}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_metrics_and_labels_that_there_are(expression: str) -> None:
    assert named(expression) <= METRICS.keys() | {"up"}
    for name, matchers in re.findall(
        r"(clipfleet_\w+)\{([^}]*)\}", re.sub(r"\{name\}", "", expression)
    ):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= METRICS[metric(name)]
    labels = {label for name in named(expression) for label in METRICS[name]} | {"le"}
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= labels


def test_the_dashboard_shows_every_metric() -> None:
    assert set().union(*map(named, dashboard())) == METRICS.keys()


@pytest.mark.parametrize(
    "expression", [expression for expression in EXPRESSIONS if "_total" in expression]
)
def test_a_counter_is_only_read_as_a_rate(expression: str) -> None:
    assert expression.count("_total") == len(re.findall(r"rate\(clipfleet_\w+_total", expression))


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_grafana_is_given_the_source_that_the_dashboard_asks() -> None:
    (provisioning,) = deployment.documents(
        DEPLOY / "grafana/provisioning/datasources/prometheus.yml"
    )
    (source,) = provisioning["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


def test_grafana_finds_the_dashboard_where_compose_mounts_it() -> None:
    (provisioning,) = deployment.documents(DEPLOY / "grafana/provisioning/dashboards/clipfleet.yml")
    path = provisioning["providers"][0]["options"]["path"]
    assert f"./deploy/grafana/dashboards:{path}:ro" in deployment.compose()["grafana"]["volumes"]


def scraped() -> dict[str, dict[str, Any]]:
    (config,) = deployment.documents(PROMETHEUS / "prometheus.yml")
    return {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}


def test_prometheus_asks_every_part_that_compose_has() -> None:
    hosts = {name for job in scraped().values() for name in job["names"]}
    parts = {
        name
        for name, service in deployment.compose().items()
        if service["image"].startswith("clipfleet-")
    }
    assert hosts == parts - {"keys", "flower"}
    assert {job: target["port"] for job, target in scraped().items()} == {
        "gateway": 8000,
        "planner": 9400,
        "workers": 9400,
    }


def test_every_alert_says_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "action"}


def promtool(*arguments: str | Path) -> str:
    command = [deployment.tool("promtool"), *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def test_prometheus_understands_its_configuration() -> None:
    promtool("check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", PROMETHEUS / "alerts.yml")


def test_alerts_are_raised_when_they_should_and_not_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", PROMETHEUS / "alerts_test.yml")


def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(dashboard())
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")
