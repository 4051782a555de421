"""What docker-compose.yml and deploy/ say, read as data."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def compose() -> dict[str, Any]:
    """The services of docker-compose.yml, anchors and merges resolved."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def rendered(folder: Path) -> list[dict[str, Any]]:
    """A kustomization as `kubectl apply -k` would send it; skips where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl, which renders kustomizations")
    said = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    return [one for one in yaml.safe_load_all(said.stdout) if one]


def tool(name: str) -> str:
    """A program that no Python package brings; skips where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def defaults(text: str) -> str:
    """`${NAME:-default}` as it reads when nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
