"""Runs the commands that documents tell their readers to type."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support import stack

BIN = Path(sys.executable).parent
README = Path(__file__).parents[2] / "README.md"
START = README.parent / "docs" / "start.md"


def blocks_in(document: Path) -> dict[tuple[str, str], list[str]]:
    """The fenced blocks of a document that can be run, by heading and language."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for section in re.split(r"^#+ ", document.read_text(), flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        for language, body in re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S):
            if language != "text":
                blocks.setdefault((heading, language), []).append(body)
    return blocks


def lines(block: str) -> list[str]:
    """The commands of a block; a command over several lines is joined."""
    joined = block.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def put_for(text: str, real: Mapping[str, str]) -> str:
    """The text with the examples replaced by what exists in the test; each example must occur."""
    for example, instead in real.items():
        assert example in text, f"the document does not say {example!r} any more"
        text = text.replace(example, instead)
    return text


def shell(command: str, home: Path, **env: str) -> str:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=home,
        env={**stack.CLEAN, "HOME": str(home), "PATH": path, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
