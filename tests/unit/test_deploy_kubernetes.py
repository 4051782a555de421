"""deploy/kubernetes: the manifests are valid, consistent, and grant no more rights than needed."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from support import deployment
from support.deployment import KUBERNETES

OLDEST, NEWEST = "1.30", kubernetes_validate.latest_version()
OTHERS = {"ScaledObject", "PodMonitor"}  # KEDA's and the Prometheus Operator's
BASE = [
    path
    for path in sorted((KUBERNETES / "base").glob("*.yaml"))
    if path.name != "kustomization.yaml"
]
MANIFESTS = [manifest for path in BASE for manifest in deployment.documents(path)]
DEPLOYMENTS = [manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment"]


def name_of(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def overlay(tmp_path: Path, components: list[str]) -> Path:
    """A copy of our manifests with a user's overlay: overlays/cpu with more components."""
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "overlays" / "own"
    folder.mkdir()
    lines = ["kind: Kustomization", "namespace: clipfleet", "resources: [../cpu]", "components:"]
    lines += [f"  - ../../components/{name}" for name in components]
    (folder / "kustomization.yaml").write_text("\n".join(lines))
    return folder


def require_valid(manifests: list[dict[str, Any]]) -> None:
    known = [manifest for manifest in manifests if manifest["kind"] not in OTHERS]
    assert known
    for manifest in known:
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_kubernetes_knows_every_field(manifest: dict[str, Any]) -> None:
    require_valid([manifest])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_an_overlay_renders_to_what_kubernetes_knows(name: str) -> None:
    manifests = deployment.rendered(KUBERNETES / "overlays" / name)
    require_valid(manifests)
    images = [
        pod(manifest)["containers"][0]["image"]
        for manifest in manifests
        if manifest["kind"] == "Deployment"
    ]
    assert all(image.startswith("registry.example/") for image in images)
    assert any("-cuda:" in image for image in images) == (name == "gpu")


def test_every_component_can_be_added(tmp_path: Path) -> None:
    names = ["blobs-volume", "models-volume", "prometheus-operator"]
    manifests = deployment.rendered(overlay(tmp_path, names))
    require_valid(manifests)
    for manifest in (manifest for manifest in manifests if manifest["kind"] == "Deployment"):
        claims = [volume.get("persistentVolumeClaim", {}) for volume in pod(manifest)["volumes"]]
        assert {"claimName": "blobs"} in claims
        assert ({"claimName": "models"} in claims) == manifest["metadata"]["name"].startswith(
            "worker"
        )


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("manifest", DEPLOYMENTS, ids=name_of)
def test_a_pod_has_no_rights_that_it_does_not_need(manifest: dict[str, Any]) -> None:
    spec = pod(manifest)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("manifest", DEPLOYMENTS, ids=name_of)
def test_a_pod_is_watched_and_may_end_in_peace(manifest: dict[str, Any]) -> None:
    (container,) = pod(manifest)["containers"]
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/healthz"
        assert container[probe]["httpGet"]["port"] in ports
    worker = manifest["metadata"]["name"].startswith("worker")
    assert pod(manifest)["terminationGracePeriodSeconds"] >= (60 if worker else 20)


def test_who_is_scaled_by_somebody_else_says_no_number() -> None:
    """Otherwise every `kubectl apply` resets the number of replicas."""
    fixed = {
        manifest["metadata"]["name"] for manifest in DEPLOYMENTS if "replicas" in manifest["spec"]
    }
    assert fixed == {"planner"}


def test_a_drained_node_leaves_some_of_each() -> None:
    budgets = {
        manifest["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        for manifest in MANIFESTS
        if manifest["kind"] == "PodDisruptionBudget"
    }
    assert budgets == {manifest["metadata"]["name"] for manifest in DEPLOYMENTS}


def scaled() -> list[dict[str, Any]]:
    folder = KUBERNETES / "components" / "keda"
    return [
        *deployment.documents(folder / "ingest.yaml"),
        *deployment.documents(folder / "query.yaml"),
    ]


def test_keda_reads_the_model_that_the_parts_serve_at_the_gateway_that_there_is() -> None:
    (base,) = deployment.documents(KUBERNETES / "base" / "kustomization.yaml")
    settings = dict(line.split("=", 1) for line in base["configMapGenerator"][0]["literals"])
    triggers = [
        trigger for scaled_object in scaled() for trigger in scaled_object["spec"]["triggers"]
    ]
    read = [trigger["metadata"] for trigger in triggers if trigger["type"] == "metrics-api"]
    assert len(read) == 2
    for metadata in read:
        assert f'model="{settings["CLIPFLEET_MODEL"]}"' in metadata["valueLocation"]
        assert metadata["url"] == f"http://gateway.{base['namespace']}.svc:8000/metrics"
        assert metadata["format"] == "prometheus"
        assert float(metadata["targetValue"]) > 0


def test_only_ingest_workers_may_go_altogether() -> None:
    least = {
        scaled_object["spec"]["scaleTargetRef"]["name"]: scaled_object["spec"]["minReplicaCount"]
        for scaled_object in scaled()
    }
    assert least["worker-ingest"] == 0
    assert least["worker-query"] >= 2
    assert least.keys() <= {manifest["metadata"]["name"] for manifest in DEPLOYMENTS}


def test_no_secret_is_carried_along() -> None:
    kinds = {
        manifest["kind"]
        for path in KUBERNETES.rglob("*.yaml")
        if path.name != "secrets.example.yaml"
        for manifest in deployment.documents(path)
    }
    assert "Secret" not in kinds
