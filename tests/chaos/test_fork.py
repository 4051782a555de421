"""`up` talks to Milvus over gRPC and then starts children: none may be lost on the way to exec."""

import subprocess
import sys
from pathlib import Path

from support import services

PROGRAM = """
import sys, threading
from pathlib import Path
from clipfleet.common.store.milvus import MilvusStore
from clipfleet.embedded.supervisor import Part, Supervisor

store = MilvusStore(sys.argv[1], timeout_s=5)
store.ping()
watched = Supervisor(Path(sys.argv[2]), threading.Event())
part = Part("part", ["/bin/sleep", "0"], {}, lambda _: True)
codes = [child.wait() for child in [watched._spawn(part) for _ in range(240)]]
print(sorted(set(codes)))
"""


def test_no_child_dies_between_fork_and_exec(tmp_path: Path) -> None:
    with services.milvus_lite(tmp_path / "milvus") as uri:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, uri, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0]"
    assert (tmp_path / "logs" / "part.log").read_text() == ""
