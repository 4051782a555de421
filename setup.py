"""What is computed about the package. All else is in pyproject.toml.

- The packages: api, common and workers are folders beside clipfleet, and links in it. A source
  distribution has no links, so setuptools cannot find the packages through them.
- The page of the package index: the README with links to the repository, because the index has no
  files beside it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("api", "common", "workers")
REPOSITORY = "https://github.com/clipfleet/clipfleet/blob/main/"


def page() -> str:
    """The README with absolute links."""
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)", f"]({REPOSITORY}", readme)


setup(
    long_description=page(),
    long_description_content_type="text/markdown",
    packages=[
        *find_packages(include=["clipfleet*"], exclude=[f"clipfleet.{room}*" for room in ROOMS]),
        *(f"clipfleet.{name}" for name in find_packages(include=[f"{room}*" for room in ROOMS])),
    ],
    package_dir={f"clipfleet.{room}": room for room in ROOMS},
)
