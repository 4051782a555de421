"""Downloads what clipfleet needs on a machine without a network, for benchmarks/gpu.py.

    python benchmarks/carried_wheels.py FOLDER --there FILE [--python 3.12] [--leave openvino nncf]

FILE lists the packages of that machine, separated by commas or white space; the output of
`pip freeze` will do. The wheels are the versions that are installed here, for Linux on x86-64. On
that machine:

    python3 -m pip install --no-index --no-deps --target CARRIED FOLDER/*.whl
    PYTHONPATH=REPOSITORY:CARRIED python3 benchmarks/gpu.py PHOTOS

Packages that are there are not looked at further: they have what they need. Those of RENEWED are
brought along all the same: others need a recent version, and an old one fails at import only.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as name_of

RENEWED = ("click", "packaging", "typing-extensions")
GLIBC = (17, 24, 27, 28, 31, 34, 35)  # pip takes a wheel only for a version that is named


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--there", type=Path, required=True)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--leave", nargs="*", default=["openvino", "nncf"])
    args = parser.parse_args()
    there = {
        name_of(re.split("[=@]", word)[0])
        for word in re.split(r"[,\s]+", args.there.read_text())
        if word
    }
    environment = {
        "python_version": args.python,
        "python_full_version": f"{args.python}.0",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "sys_platform": "linux",
    }
    leave = there - set(RENEWED) | set(map(name_of, args.leave))
    names = set(missing("clipfleet[embedded]", leave, environment, set())) | set(RENEWED)
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={args.python}", *platforms]
    pins = sorted(f"{name}=={version(name)}" for name in names)
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", str(args.folder)]
    subprocess.run([*pip, *options, "--platform=manylinux2014_x86_64", *pins], check=True)
    sizes = sorted((wheel.stat().st_size, wheel.name) for wheel in args.folder.glob("*.whl"))
    print(*(f"{size:12,} {name}" for size, name in sizes), sep="\n")
    print(
        f"{sum(size for size, _ in sizes):12,} bytes, {len(sizes)} wheels of {len(pins)} packages"
    )


def missing(
    text: str, leave: AbstractSet[str], environment: dict[str, str], seen: set[str]
) -> Iterator[str]:
    """The names of the packages that a requirement needs, less those in `leave`.

    Args:
        environment: values for the markers of requirements.
        seen: the requirements that were looked at.
    """
    needed = Requirement(text)
    name = name_of(needed.name)
    if name in leave or text in seen:
        return
    seen.add(text)
    try:
        below = requires(name) or []
    except PackageNotFoundError as error:
        raise SystemExit(f"{name} is not installed here, so its version is not known") from error
    if name != "clipfleet":
        yield name
    for other in map(Requirement, below):
        extras = needed.extras or {""}
        if not other.marker or any(
            other.marker.evaluate({**environment, "extra": extra}) for extra in extras
        ):
            listed = f"[{','.join(sorted(other.extras))}]" if other.extras else ""
            yield from missing(other.name + listed, leave, environment, seen)


if __name__ == "__main__":
    main()
