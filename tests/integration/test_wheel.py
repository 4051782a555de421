"""The wheel has every file that an installed clipfleet needs, and no other."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "common", "workers")  # links to them are in clipfleet/
LEFT_OUT = ("__pycache__", "*.egg-info")


def shipped() -> set[str]:
    """Return the files in the folders of the packages, by their installed names."""
    return {
        str(Path("clipfleet", path.relative_to(ROOT)) if room else path.relative_to(ROOT))
        for folder, room in [(ROOT / "clipfleet", False), *((ROOT / name, True) for name in ROOMS)]
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        if room or path.relative_to(folder).parts[0] not in ROOMS
    }


def copy_of_the_tree(folder: Path) -> Path:
    folder.mkdir()
    for name in ("clipfleet", *ROOMS):
        ignored = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def wheel_of(source: Path, folder: Path) -> Path:
    """Return the wheel that pip builds from a folder or a source distribution."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", folder, source], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.startswith("clipfleet-")}


def links_of(wheel: Path) -> list[str]:
    """Return the targets of the links on the page of the package index."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    assert "Description-Content-Type: text/markdown" in metadata
    return re.findall(r"\]\(([^)]+)\)", metadata)


def test_the_wheel_is_the_tree(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    wheel = wheel_of(tree, tmp_path)
    assert files_in(wheel) == shipped()
    links = links_of(wheel)
    assert any(link.endswith("/blob/main/docs/start.md") for link in links)
    assert [link for link in links if "//" not in link and link[0] != "#"] == []


def test_a_wheel_from_the_source_distribution_is_the_tree(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (source,) = tmp_path.glob("*.tar.gz")
    assert files_in(wheel_of(source, tmp_path)) == shipped()
