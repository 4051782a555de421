"""`clipfleet collections migrate`, on a whole service in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from clipfleet import NotFound, ProblemError
from clipfleet.testing import HashEmbedder
from support.in_process import InProcess


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InProcess]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(12):
        Image.new("RGB", (20, 20), (n, 9 * n, 255 - n)).save(folder / f"{n}.png")
    more = {"hash:32": HashEmbedder(32)}
    with InProcess(dim=64, more=more, source_roots=[tmp_path]) as service:
        with service.client() as client:
            client.index("photos", str(folder), label_from_folder=True, wait=True)
        (folder / "3.png").unlink()
        yield service


def test_from_the_start_to_the_end(service: InProcess) -> None:
    def migrate(*options: str) -> tuple[int, str, str]:
        done = service.cli("collections", "migrate", "photos", *options)
        return done.returncode, done.stdout, done.stderr

    assert migrate()[0] == 1
    code, out, err = migrate("--model", "hash:32", "--follow")
    assert code == 0, err
    assert "photos: hash:64 → hash:32, ready" in out
    assert "11 of 12 images" in out or "12 of 12 images" in out
    assert "1 cannot be read" in out
    assert "of the ten nearest images are the same" in out
    assert "same label among the ten nearest: 100.0% before, 100.0% after" in out
    assert "next: clipfleet collections migrate photos --swap --force" in out
    assert "3.png: " in err
    assert "3.png\t" in migrate("--unreadable")[1]
    code, _, err = migrate("--swap")
    assert (code, "1 images cannot be read any more" in err) == (1, True)
    code, out, _ = migrate("--swap", "--force")
    assert (code, "hash:32: 11 images of 32 numbers, answers searches" in out) == (0, True)
    assert "ready" in migrate("--rollback")[1]
    assert "paused" in migrate("--pause")[1]
    assert "ready" in migrate("--resume")[1]
    assert migrate("--swap", "--force")[0] == 0
    code, out, err = migrate("--finish")
    assert (code, "photos: hash:64 → hash:32, finished" in out) == (0, True), err
    assert '"state":"finished"' in migrate("--json")[1].replace(" ", "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--swap", "--finish"), "--swap and --finish cannot be used together"),
        (("--model", "hash:32", "--cancel"), "--cancel and --model cannot be used together"),
        (("--force",), "--force goes with --swap, --rollback or --finish"),
        (("--model", "hash:64"), "already has the model 'hash:64'"),
        (("--swap",), "there is no migration of the collection 'photos'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    service: InProcess, options: tuple[str, ...], reason: str
) -> None:
    done = service.cli("collections", "migrate", "photos", *options)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert reason in done.stderr


def test_the_client_does_the_same(service: InProcess) -> None:
    with service.client() as client:
        with pytest.raises(NotFound):
            client.migration("photos")
        migration = client.start_migration("photos", "hash:32")
        assert (migration.state, migration.new.model) == ("building", "hash:32")
        with pytest.raises(ProblemError, match="being migrated") as refused:
            client.start_migration("photos", "hash:32")
        assert refused.value.status == 409
        assert client.pause_migration("photos").state == "paused"
        assert client.resume_migration("photos").state == "building"
        assert client.swap_migration("photos", force=True).new.answers
        assert client.roll_back_migration("photos", force=True).old.answers
        assert client.cancel_migration("photos").state == "cancelled"
        assert client.unreadable("photos").next is None
