"""Every command and every program of the guides is executed; ```text shows other machines."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import stack
from support.s3 import S3
from support.stack import Up

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
BIN = Path(sys.executable).parent


@pytest.fixture
def home(tmp_path: Path, flickr: list[Path]) -> Path:
    """A user's home: pictures by occasion, and a photo of a cat."""
    for number, occasion in enumerate(("holiday", "rome")):
        photos = stack.photos(tmp_path / "Pictures" / occasion, flickr[6 * number :], 6)
        photos[0].rename(photos[0].with_name("1.jpg"))
    (tmp_path / "holiday").mkdir()
    (tmp_path / "rome").mkdir()
    for name, photo in (("cat.jpg", 20), ("holiday/beach.jpg", 21), ("rome/church.jpg", 22)):
        (tmp_path / name).write_bytes(flickr[photo].read_bytes())
    (tmp_path / ".curlrc").write_text("show-error\nfail-with-body\n")
    return tmp_path


def blocks(guide: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(sh|python)\n(.*?)^```", (GUIDES / guide).read_text(), re.M | re.S)


def script(guide: str) -> str:
    """All commands of a guide, for one shell, as a reader of the guide types them."""
    steps = ["set -eo pipefail"]
    for language, body in blocks(guide):
        steps += [f"python3 - <<'PROGRAM'\n{body}PROGRAM"] if language == "python" else [body]
    return "\n".join(steps)


@pytest.fixture
def bucket(s3: S3, flickr: list[Path]) -> str:
    """The address that stands for the guides' s3://photos."""
    s3.fill("guides", {f"2024/boats/{n}.jpg": flickr[n].read_bytes() for n in range(3)})
    return "s3://guides"


@pytest.fixture
def up(service: Up) -> Iterator[Up]:
    with service.tidied() as there:
        yield there


@pytest.mark.parametrize("guide", sorted(path.name for path in GUIDES.glob("*.md")))
def test_a_guide_can_be_followed(guide: str, up: Up, home: Path, bucket: str) -> None:
    assert blocks(guide)
    commands = script(guide).replace("localhost:8000", up.url).replace("s3://photos", bucket)
    followed = subprocess.run(
        ["bash", "-c", commands],
        cwd=home,
        env={
            **stack.CLEAN,
            "HOME": str(home),
            "CLIPFLEET_URL": up.url,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert followed.returncode == 0, followed.stdout + followed.stderr
