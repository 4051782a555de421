"""The shell examples of docs/: run where the services of the tests can, or listed with a reason."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import stack
from support.documents import lines, put_for, shell
from support.stack import Up
from support.webserver import body, site

DOCS = Path(__file__).parents[2] / "docs"
SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples" / "animals"
RUN = {
    ("jobs.md", "Jobs"),
    ("sources.md", "Manifest"),
    ("sources.md", "URLs"),
    ("sources.md", "Archive"),
    ("sources.md", "Folder"),
    ("urls.md", "What happens to a URL"),
    ("keys.md", "Make one"),
    ("keys.md", "Rotate and revoke"),
}
NOT_RUN = {
    ("sources.md", "Sources"): "an overview; each kind has its own example below it",
    ("sources.md", "Bucket"): "installs a package and needs a bucket: tests/integration/test_s3.py",
    ("sources.md", "Mirrors"): "the same is done in tests/unit/test_mirror_requests.py",
    ("sources.md", "Several sources"): "the same is done in tests/unit/test_several_sources.py",
    (
        "sources.md",
        "Uploads",
    ): "the same is done in tests/unit/test_folder_upload.py, test_uploads.py",
    ("keys.md", "What the jobs of a key can reach"): "names buckets: integration/test_tenants.py",
    ("filters.md", "Metadata filters"): "filters, no commands: tests/unit/test_filters.py",
    ("jobs.md", "The storm"): "half an hour; its short form is tests/chaos/test_storm.py",
    ("map.md", None): "the same calls are made in tests/unit/test_maps.py",
    ("tags.md", None): "the same calls are made in tests/unit/test_tags.py",
    ("models.md", None): "models of the hub, and minutes of a benchmark: test_open_clip.py",
    ("search.md", None): "the same requests are made in test_mixed_search.py and test_guides.py",
    ("collections.md", None): "the same calls are made, by both clients, in test_collections.py",
    ("deploy.md", None): "needs a container engine or a cluster: tests/unit/test_deploy*.py",
    ("backup.md", None): "the same is done in test_backup.py; export and import in collections.md",
    ("start.md", None): "its commands are run in test_start.py and test_parts.py",
    ("index.md", None): "the first commands of start.md: test_start.py",
    ("openai.md", None): "its Python is run in tests/unit/test_openai.py",
    ("webhooks.md", None): "the same is done in tests/chaos/test_webhooks.py",
    ("benchmarks.md", None): "speed is measured by hand, on a machine that is known",
}


def blocks() -> dict[tuple[str, str], str]:
    """By document and heading: what is fenced as sh, or indented, below it."""
    examples: dict[tuple[str, str], str] = {}
    for path in sorted(DOCS.glob("*.md")):
        for section in re.split(r"^#+ ", path.read_text(), flags=re.MULTILINE)[1:]:
            heading, _, text = section.partition("\n")
            fenced = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
            plain = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
            indented = re.findall(r"(?:^\n)((?:    .*\n)+)", plain, re.M)
            parts = [*fenced, *(re.sub(r"^    ", "", part, flags=re.M) for part in indented)]
            if parts:
                examples[path.name, heading] = "".join(parts)
    return examples


def test_every_example_is_run_here_or_listed_with_a_reason() -> None:
    known = RUN | NOT_RUN.keys()
    unknown = {(path, heading) for path, heading in blocks() if (path, None) not in known} - known
    assert unknown == set()
    assert known - {(name, None) for name, _ in blocks()} <= blocks().keys()


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    pages = {
        f"/{name}.jpg": body((SAMPLES / f"{name}.png").read_bytes()) for name in ("cat", "dog")
    }
    pages["/rex.jpg"] = pages["/church.jpg"] = pages["/dog.jpg"]
    with site(pages) as there:
        yield there.url


@pytest.fixture
def up(carried_stack: Up) -> Iterator[Up]:
    with carried_stack.tidied() as there:
        yield there


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """`photos/` and `cats/`, as the examples have them."""
    for folder in ("photos", "cats"):
        stack.photos(tmp_path / folder, sorted(SAMPLES.glob("*.png")), 4)
    (tmp_path / "cats" / "tom.jpg").write_bytes((SAMPLES / "cat.png").read_bytes())
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
    return tmp_path


def succeeded(images: int, output: str) -> bool:
    return f"succeeded {images}" in " ".join(output.split())


def test_a_manifest(up: Up, home: Path, web: str) -> None:
    block = put_for(blocks()["sources.md", "Manifest"], {"https://example.org": web})
    output = shell(block, home, CLIPFLEET_URL=up.url)
    assert "tom" in output
    assert "rex" not in output, "it has no year"


def test_urls(up: Up, home: Path, web: str) -> None:
    block = put_for(blocks()["sources.md", "URLs"], {"https://example.org": web})
    assert succeeded(2, shell(block, home, CLIPFLEET_URL=up.url))


def test_an_archive(up: Up, home: Path) -> None:
    assert succeeded(4, shell(blocks()["sources.md", "Archive"], home, CLIPFLEET_URL=up.url))


def test_a_folder(up: Up, home: Path) -> None:
    block = put_for(blocks()["sources.md", "Folder"], {"/data/photos": str(home / "photos")})
    assert succeeded(4, shell(block, home, CLIPFLEET_URL=up.url))


def test_jobs(up: Up, home: Path) -> None:
    """On a job of which one image failed."""
    (home / "photos" / "bad.jpg").write_bytes(b"no picture")
    with up.client() as client:
        job = client.index("photos", home / "photos", wait=True)
    block = put_for(blocks()["jobs.md", "Jobs"], {" ID": f" {job.id}"})
    listed, shown, failures, retry, cancel, delete = lines(block)
    env = {"CLIPFLEET_URL": up.url}
    assert job.id in shell(listed, home, **env)
    assert "partial" in shell(f"{shown} || true", home, **env)
    assert "bad.jpg" in shell(failures, home, **env)
    assert "failed" in shell(f"{retry} || true", home, **env)
    for command in (cancel, delete):
        shell(command, home, **env)
    assert job.id not in shell(listed, home, **env)


def test_a_search_by_url(up: Up, home: Path, web: str) -> None:
    with up.client() as client:
        client.upload("photos", [SAMPLES / "dog.png"], wait=True)
    real = {"localhost:8000": up.url, "https://example.org": web}
    output = shell(put_for(blocks()["urls.md", "What happens to a URL"], real), home)
    assert json.loads(output)["matches"]


def test_keys(home: Path) -> None:
    """In one shell: the second section goes on where the first ends."""
    both = blocks()["keys.md", "Make one"] + blocks()["keys.md", "Rotate and revoke"]
    output = shell(f"{both}\nclipfleet keys list", home)
    listed = output.partition("revoked shop")[2]
    assert "visitors" in listed
    assert "shop-2" in listed
