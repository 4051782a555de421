"""The wheel has every file of the tree that an installed clipfleet needs, and no other."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "common", "workers")  # links to them are in clipfleet/
LEFT_OUT = ("__pycache__", "*.egg-info")


def shipped() -> set[str]:
    """What lies in the folders that are packages, under the name that it has when installed."""
    return {
        str(Path("clipfleet", path.relative_to(ROOT)) if room else path.relative_to(ROOT))
        for folder, room in [(ROOT / "clipfleet", False), *((ROOT / one, True) for one in ROOMS)]
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        if room or path.relative_to(folder).parts[0] not in ROOMS
    }


def test_the_wheel_is_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("clipfleet", *ROOMS):
        ignored = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "out"]
    subprocess.run([*build, "."], cwd=tree, check=True, capture_output=True)
    (wheel,) = (tree / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.startswith("clipfleet-")}
    assert files == shipped()
