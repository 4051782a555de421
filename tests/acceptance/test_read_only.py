"""All parts as the containers of deploy/ have them: / is read-only, and they have no capabilities.

In place of a container: a mount namespace of their own. They may write one folder, each its own,
and the blobs.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from clipfleet import Client
from clipfleet.embedded import commands
from support import services, stack

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "clipfleet" / "samples" / "animals"
PROGRAM = "from clipfleet.cli import main; main()"
ENTER = """
mount --bind "$1" "$1" && mount --bind "$2" "$2" && mount -o remount,ro,bind / || exit 1
mount -o remount,ro,bind /tmp 2>/dev/null
cd "$1" && shift 2
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def contained(folder: Path, blobs: Path, *command: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    blobs.mkdir(exist_ok=True)
    namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]
    return [*namespace, str(folder), str(blobs), *command]


@pytest.fixture(autouse=True)
def _permitted(tmp_path: Path) -> None:
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("no unshare or setpriv: util-linux has them")
    tried = contained(tmp_path / "tried", tmp_path / "blobs", "true")
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")


def test_what_contains_them_holds(tmp_path: Path) -> None:
    touch = "touch here && ! touch {0}/x && ! touch /tmp/x && ! touch {1}/x"
    command = ["sh", "-c", touch.format(ROOT, tmp_path)]
    subprocess.run(contained(tmp_path / "own", tmp_path / "blobs", *command), check=True)
    assert (tmp_path / "own" / "here").exists()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    port = commands.free_port()
    parts = {
        "gateway": ("gateway", "--port", str(port)),
        "planner": ("planner",),
        "ingest": ("worker", "--lane", "ingest"),
        "query": ("worker", "--lane", "query"),
    }
    with ExitStack() as running:
        settings = {
            "CLIPFLEET_REDIS_URL": running.enter_context(services.valkey(tmp_path / "v")),
            "CLIPFLEET_MILVUS_URI": running.enter_context(services.milvus_lite(tmp_path / "m")),
            "CLIPFLEET_MODEL": "clipfleet-mini",
            "CLIPFLEET_BLOBS": str(tmp_path / "blobs"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name, arguments in parts.items():
            own = tmp_path / name
            command = contained(own, tmp_path / "blobs", sys.executable, "-c", PROGRAM, *arguments)
            home = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME"), str(own))
            log = tmp_path / f"{name}.log"
            running.enter_context(services.process(command, log, **settings, **home))
        client = running.enter_context(Client(f"http://127.0.0.1:{port}"))
        services.eventually(
            lambda: client.create_collection("images"), stack.START_S, "gateway and workers"
        )
        yield client


def test_all_of_it_works(client: Client) -> None:
    """An upload goes through the gateway's temporary files, the blobs and every part."""
    job = client.upload(sorted(SAMPLES.glob("*.png"))[:12], "images", wait=True)
    assert (job.state, job.done) == ("succeeded", 12)
    first = client.search(text="a dog", top_k=1, collection="images").matches[0]
    assert client.thumbnail(first.id, collection="images").startswith(b"\xff\xd8")
