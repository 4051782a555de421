"""`clipfleet doctor` on a real stack: findings, stages of indexing, and advice."""

from support.stack import Up, cli, document

STAGES = {"blobs", "feeders", "device", "store"}


def test_a_service_in_good_order_is_timed(carried_stack: Up) -> None:
    done = carried_stack.cli("doctor", "--json", "--seconds", "10")
    assert done.returncode == 0, done.stderr
    report = document(done)
    assert [
        finding for finding in report["fleet"]["findings"] if finding["severity"] == "error"
    ] == []
    assert {lane for worker in report["fleet"]["workers"] for lane in worker["lanes"]} == {
        "ingest",
        "query",
    }
    probe = report["probe"]
    assert probe["images"] > 0
    assert {stage["name"] for stage in probe["stages"]} == STAGES
    alone = [stage["alone"] for stage in probe["stages"]]
    assert alone == sorted(alone)
    assert probe["advice"]
    with carried_stack.client() as client:
        assert not [
            collection
            for collection in client.collections()
            if collection.name.startswith("doctor-")
        ]


def test_people_get_it_in_words(carried_stack: Up) -> None:
    done = carried_stack.cli("doctor", "--no-probe")
    assert done.returncode == 0, done.stderr
    assert "no faults found" in done.stdout
    assert "clipfleet-mini" in done.stdout


def test_where_nothing_answers_it_says_what_to_do() -> None:
    done = cli("doctor", CLIPFLEET_URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert "Start a service with `clipfleet up`" in done.stderr
    assert done.stdout == ""


def test_a_folder_without_images_is_said_before_anything_is_asked(carried_stack: Up) -> None:
    (carried_stack.folder / "nothing").mkdir()
    done = carried_stack.cli("doctor", "--images", str(carried_stack.folder / "nothing"))
    assert done.returncode == 1
    assert "has no images" in done.stderr
