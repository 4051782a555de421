"""Fetch the packages that hold drawings and words, by npm's and apt's own clients, and unpack.

Every archive is kept, unpacked once, and checked against the digests in ``digests.json`` so
that a changed package is noticed instead of quietly trained on.
"""

import hashlib
import json
import logging
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

LOG = logging.getLogger(__name__)
DIGESTS = Path(__file__).with_name("digests.json")


@dataclass(frozen=True)
class Package:
    """One package to fetch: where from, and the folder it is unpacked to."""

    client: str
    name: str
    version: str
    folder: str


EMOJI_VENDORS = ("apple", "google", "twitter", "facebook")
PACKAGES = (
    *(
        Package("npm", f"emoji-datasource-{vendor}", "16.0.0", f"emoji-{vendor}")
        for vendor in EMOJI_VENDORS
    ),
    Package("npm", "openmoji", "17.0.0", "openmoji"),
    Package("npm", "emojibase-data", "17.0.0", "emojibase"),
    Package("apt", "openclipart-png", "1:0.18+dfsg-19", "openclipart"),
    Package("apt", "wordnet-base", "1:3.0-37", "wordnet"),
)


def fetch(work: Path, without: frozenset[str]) -> None:
    """Bring every package that is not left out to ``work/packages/<folder>``."""
    for package in PACKAGES:
        target = work / "packages" / package.folder
        if package.folder not in without and not target.exists():
            _fetch_one(package, target, work / "archives" / package.folder)


def _fetch_one(package: Package, target: Path, archives: Path) -> None:
    """Download, check and unpack one package; the target appears only when complete."""
    LOG.info("fetching %s", package.name)
    archives.mkdir(parents=True, exist_ok=True)
    archive = _downloaded(package, archives)
    _check(package, archive)
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    _unpack(package, archive, part)
    part.rename(target)


def _downloaded(package: Package, archives: Path) -> Path:
    """Let the package's own client put the archive into ``archives``."""
    if package.client == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
    subprocess.run(command, cwd=archives, check=True, stdout=subprocess.DEVNULL)
    return next(path for path in archives.iterdir() if path.suffix in (".tgz", ".deb"))


def _check(package: Package, archive: Path) -> None:
    """Compare an archive with its recorded digest."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known: dict[str, str] = json.loads(DIGESTS.read_text(encoding="utf-8"))
    if known.get(package.folder) != digest:
        raise ValueError(f"{archive.name}: sha256 {digest} is not the recorded one")


def _unpack(package: Package, archive: Path, target: Path) -> None:
    """Unpack an archive, sprite sheets left out."""
    if package.client == "apt":
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
        return
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if "/sheets" not in member.name]
        tar.extractall(target, members=members, filter="data")
