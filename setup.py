"""The packages, computed: api, common and workers are folders beside clipfleet, and links in it.

All else about the package is in pyproject.toml. A source distribution has no links, so setuptools
cannot find the packages through them.
"""

from setuptools import find_packages, setup

ROOMS = ("api", "common", "workers")

setup(
    packages=[
        *find_packages(include=["clipfleet*"], exclude=[f"clipfleet.{room}*" for room in ROOMS]),
        *(f"clipfleet.{name}" for name in find_packages(include=[f"{room}*" for room in ROOMS])),
    ],
    package_dir={f"clipfleet.{room}": room for room in ROOMS},
)
