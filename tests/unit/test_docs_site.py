"""The documentation as a site."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipfleet.api.app import create_app
from clipfleet.embedded import commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as `make docs` builds it."""
    copy = tmp_path_factory.mktemp("copy")
    subprocess.run(["cp", "-r", ROOT / "docs", ROOT / "mkdocs.yml", copy], check=True)
    (copy / "docs" / "http.md").unlink(missing_ok=True)
    subprocess.run([sys.executable, copy / "docs" / "openapi.py"], check=True)
    build = [commands.script("zensical"), "build", "--strict"]
    done = subprocess.run(build, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "site"


def test_every_call_has_a_summary_in_words_and_a_description() -> None:
    """FastAPI makes a summary of the name of the function: "Put Collection"."""
    paths = create_app().openapi()["paths"].values()
    calls = [call for methods in paths for call in methods.values()]
    summaries = [call["summary"] for call in calls]
    assert [text for text in summaries if text.istitle() and " " in text] == []
    assert len({*summaries}) == len(summaries)
    assert [call["summary"] for call in calls if not call.get("description")] == []


def test_the_reference_has_every_call_and_every_schema(site: Path) -> None:
    document, page = create_app().openapi(), (site / "http.html").read_text()
    calls = [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    ]
    assert calls
    assert [call for call in calls if call not in page] == []
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if f'id="{name.lower()}"' not in page] == []


def test_every_page_is_in_the_menu(site: Path) -> None:
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    menu = set(re.findall(r'href="\./([^"#]+)"', (site / "index.html").read_text()))
    pages = {page for page in built if not page.startswith("decisions/")}
    assert pages - menu == {"404.html", "index.html"}


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert 'src="http' not in page
    assert 'rel="stylesheet" href="http' not in page
