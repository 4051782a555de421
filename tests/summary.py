"""Duration of the tests: `python tests/summary.py fast.xml full.xml` (JUnit's format)."""

import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

SLOWEST = 20


def tier(file: Path) -> str:
    """Return one line with the tests, results and minutes of a tier."""
    (suite,) = ElementTree.parse(file).getroot().iter("testsuite")
    tests, seconds = int(suite.attrib["tests"]), float(suite.attrib["time"])
    bad = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    skipped = int(suite.attrib["skipped"])
    passed = tests - bad - skipped
    counts = f"{passed:5} passed {bad:3} failed {skipped:3} skipped"
    return f"{file.stem:6} {counts} in {seconds / 60:5.1f} minutes"


def durations(file: Path) -> Iterator[tuple[float, str]]:
    """Yield seconds and name of each test; a fixture counts for the test that needs it first."""
    for case in ElementTree.parse(file).getroot().iter("testcase"):
        path = case.attrib["classname"].replace(".", "/")
        yield float(case.attrib["time"]), f"{path}.py::{case.attrib['name']}"


def main(files: list[Path]) -> None:
    print(f"\nThe {SLOWEST} slowest tests, with setting up and tearing down:")
    slowest = sorted((pair for file in files for pair in durations(file)), reverse=True)
    for seconds, name in slowest[:SLOWEST]:
        print(f"{seconds:7.1f} s  {name}")
    print("\nTiers:")
    for file in files:
        print(tier(file))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
