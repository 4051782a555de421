"""Events about the objects of sources: their forms, what is ignored, and the jobs they start."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipfleet.api.sources.events import MAX_DEPTH, UnknownForm, parse_events
from clipfleet.api.sources.scheduler import HOLD_S, KEYS_OF_RUN, MAX_FOLLOW_S
from clipfleet.common.errors import InvalidRequest
from clipfleet.common.ledger import Job, NewJob
from clipfleet.common.ledger.registered import COLLECT_KEYS, COLLECT_S
from support.scheduling import Scheduling

PATH = "/v1/collections/acme/sources/s"
BUCKET = {"type": "bucket", "uri": "s3://photos/2024/"}


def s3_record(key: str, name: str = "ObjectCreated:Put", bucket: str = "photos") -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": name,
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1}},
    }


def records(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"Records": [*entries]}


MINIO = {
    "EventName": "s3:ObjectCreated:Put",
    "Key": "photos/2024/a.jpg",
    "Records": [s3_record("2024%2Fa.jpg", "s3:ObjectCreated:Put")],
}
BRIDGE = {
    "source": "aws.s3",
    "detail-type": "Object Deleted",
    "detail": {"bucket": {"name": "photos"}, "object": {"key": "2024/a b+c.jpg"}},
}
CREATED = records(s3_record("2024/a.jpg"))
OBJECTS: list[tuple[Any, list[tuple[str, str]]]] = [
    (CREATED, [("photos", "2024/a.jpg")]),
    (records(s3_record("2024/a+b%2B%C3%BC.jpg")), [("photos", "2024/a b+ü.jpg")]),
    (records(s3_record("x.jpg", "ObjectRemoved:DeleteMarkerCreated")), [("photos", "x.jpg")]),
    (records(s3_record("x.jpg", "LifecycleExpiration:Delete")), [("photos", "x.jpg")]),
    (MINIO, [("photos", "2024/a.jpg")]),
    ({key: MINIO[key] for key in ("EventName", "Key")}, [("photos", "2024/a.jpg")]),
    (BRIDGE, [("photos", "2024/a b+c.jpg")]),
    ([CREATED, BRIDGE], [("photos", "2024/a.jpg"), ("photos", "2024/a b+c.jpg")]),
    ({"Type": "Notification", "Message": json.dumps(CREATED)}, [("photos", "2024/a.jpg")]),
    ({"Messages": [{"Body": json.dumps(CREATED)}]}, [("photos", "2024/a.jpg")]),
    (
        records({"eventSource": "aws:sqs", "body": json.dumps(CREATED)}),
        [("photos", "2024/a.jpg")],
    ),
    (records({"Sns": {"Message": json.dumps(CREATED)}}), [("photos", "2024/a.jpg")]),
]


@pytest.mark.parametrize(("document", "objects"), OBJECTS)
def test_known_forms(document: Any, objects: list[tuple[str, str]]) -> None:
    events = parse_events(document)
    assert (events.objects, events.keys, events.ignored) == (objects, [], 0)


@pytest.mark.parametrize(
    "document",
    [
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "photos"},
        records(s3_record("a.jpg", "ObjectRestore:Post")),
        records(s3_record("a.jpg", "s3:ObjectAccessed:Get")),
        records(s3_record("")),
        records({"eventName": "ObjectCreated:Put"}),
        records({**s3_record("a.jpg"), "s3": [1]}),
        {"Records": ["text"]},
        {**BRIDGE, "detail-type": "Object Tags Added"},
    ],
)
def test_other_events_are_ignored_and_counted(document: Any) -> None:
    events = parse_events(document)
    assert (events.objects, events.keys, events.ignored) == ([], [], 1)


def _deep(document: Any) -> Any:
    for _ in range(MAX_DEPTH + 1):
        document = {"Type": "Notification", "Message": json.dumps(document)}
    return document


@pytest.mark.parametrize(
    "document",
    [{}, [], None, 1, "text", {"a": 1}, [[]], {"Type": "Notification"}, {"detail": 1},
     _deep(CREATED), {"Type": "Notification", "Message": "no JSON"}, {"Records": 1},
     {"Messages": [{}]}, {"keys": "a.jpg"}, {"Type": "Notification", "Message": "[" * 100_000}],
)  # fmt: skip
def test_anything_else_is_refused(document: Any) -> None:
    with pytest.raises(UnknownForm, match="known forms are S3 notifications"):
        parse_events(document)


def test_a_subscription_is_not_confirmed() -> None:
    document = {"Type": "SubscriptionConfirmation", "SubscribeURL": "http://10.0.0.1/"}
    with pytest.raises(InvalidRequest, match="confirm the subscription yourself"):
        parse_events(document)


@pytest.fixture
def scheduling(tmp_path: Path) -> Scheduling:
    return Scheduling(tmp_path, {"source_buckets": ["s3://photos", "s3://a"]})


def report(scheduling: Scheduling, document: Any) -> dict[str, Any]:
    answer = scheduling.world.ask(f"POST {PATH}/events", "admin", json=document)
    assert answer.status_code == 202, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def keys_of(scheduling: Scheduling, job: str) -> list[str]:
    new = scheduling.ledger.whole(job)
    assert new.source["type"] == "keys"
    keys: list[str] = new.source["keys"]
    return keys


def test_events_become_one_job_for_their_keys(scheduling: Scheduling) -> None:
    scheduling.put(source={**BUCKET, "label_from_folder": True}, namespace="n", exif=True)
    answer = report(
        scheduling,
        records(
            s3_record("2024/b.jpg"),
            s3_record("2024/deep/a%20b.png", "ObjectRemoved:Delete"),
            s3_record("2024/b.jpg"),
            s3_record("2024/c.jpg", bucket="others"),
            s3_record("2025/d.jpg"),
            s3_record("2024/notes.txt"),
            s3_record("2024/.hidden.jpg"),
            s3_record("2024/e.jpg", "ObjectRestore:Post"),
        ),
    )
    assert answer == {"accepted": 3, "ignored": 5, "waiting_keys": 2}
    assert scheduling.later() == []
    report(scheduling, records(s3_record("2024/z.jpg")))
    (job,) = scheduling.later(COLLECT_S)
    assert keys_of(scheduling, job) == ["2024/b.jpg", "2024/deep/a b.png", "2024/z.jpg"]
    new = scheduling.ledger.whole(job)
    assert new.source["of"]["uri"] == BUCKET["uri"]
    assert new.source["of"]["label_from_folder"] is True
    assert (new.namespace, new.exif, scheduling.ledger.job(job).key) == ("n", True, "admin")
    shown = scheduling.show()
    assert (shown["running"]["cause"], shown["waiting_keys"]) == ("events", 0)
    job_shown = scheduling.world.ask(f"GET /v1/jobs/{job}", "admin").json()
    assert job_shown["source"] == "s3://photos/2024/ (3 keys)"
    scheduling.end()
    scheduling.later(MAX_FOLLOW_S)
    assert scheduling.show()["last_run"]["state"] == "succeeded"
    assert scheduling.show()["state"] == "idle"


@pytest.mark.parametrize(("missing", "removes"), [("delete", True), ("report", False)])
def test_a_job_for_events_is_no_mirror(scheduling: Scheduling, missing: str, removes: bool) -> None:
    scheduling.put(source=BUCKET, mirror={"missing": missing})
    started = scheduling.world.ask(f"POST {PATH}/run", "admin")
    whole = scheduling.ledger.whole(started.json()["id"])
    assert whole.mirror
    assert (whole.mirror.missing, whole.incremental) == (missing, False)
    scheduling.ledger.cancel(whole.id)
    report(scheduling, CREATED)
    (job,) = scheduling.later(COLLECT_S)
    new = scheduling.ledger.whole(job)
    assert (new.mirror, new.incremental, new.origin) == (None, True, whole.origin)
    assert new.source["removes"] is removes


def test_a_source_that_only_reports_takes_no_events(scheduling: Scheduling) -> None:
    scheduling.put(source=BUCKET, mirror={"dry_run": True})
    refused = scheduling.world.ask(f"POST {PATH}/events", "admin", json=CREATED)
    assert refused.status_code == 422
    assert "register it without dry_run" in refused.json()["detail"]


def test_many_events_do_not_wait(scheduling: Scheduling) -> None:
    scheduling.put(source=BUCKET)
    entries = [s3_record(f"2024/{number}.jpg") for number in range(10_000)]
    assert report(scheduling, records(*entries))["accepted"] == 10_000 >= COLLECT_KEYS
    report(scheduling, records(s3_record("2024/late.jpg")))
    (job,) = scheduling.later()
    assert len(keys_of(scheduling, job)) == KEYS_OF_RUN
    assert scheduling.show()["waiting_keys"] == 1


def test_events_wait_for_the_end_of_a_run(scheduling: Scheduling) -> None:
    scheduling.put(source=BUCKET, interval=60)
    assert len(scheduling.later()) == 1
    report(scheduling, CREATED)
    assert scheduling.later(COLLECT_S) == []
    scheduling.end()
    (job,) = scheduling.later(MAX_FOLLOW_S)
    assert keys_of(scheduling, job) == ["2024/a.jpg"]


def test_events_of_a_paused_source_wait(scheduling: Scheduling) -> None:
    scheduling.put(source=BUCKET, paused=True)
    report(scheduling, CREATED)
    assert scheduling.later(3_600) == []
    assert scheduling.show()["waiting_keys"] == 1
    scheduling.world.ask(f"POST {PATH}/resume", "admin")
    assert len(scheduling.later()) == 1


def test_events_of_a_source_that_cannot_be_read_are_kept(scheduling: Scheduling) -> None:
    scheduling.put(source=BUCKET)
    report(scheduling, CREATED)
    (first,) = scheduling.later(COLLECT_S)
    scheduling.end(error="s3://photos/2024/ cannot be listed: the bucket denies access")
    assert scheduling.later(1) == []
    shown = scheduling.show()
    assert "the bucket denies access" in shown["problem"]
    assert shown["waiting_keys"] == 1
    assert scheduling.later(5) == []
    (second,) = scheduling.later(5)
    assert keys_of(scheduling, second) == keys_of(scheduling, first)
    scheduling.end()
    scheduling.later(MAX_FOLLOW_S)
    shown = scheduling.show()
    assert (shown["problem"], shown["waiting_keys"]) == (None, 0)


def test_a_job_whose_images_all_failed_is_not_repeated(scheduling: Scheduling) -> None:
    scheduling.put(source=BUCKET)
    report(scheduling, CREATED)
    (job,) = scheduling.later(COLLECT_S)
    lease = scheduling.ledger.lease(job, "p", 30)
    assert lease
    scheduling.ledger.change(job, failed=1)
    scheduling.end(error="every image failed; the failures say why")
    assert scheduling.later(3_600) == []
    assert scheduling.show()["waiting_keys"] == 0


class Killed(BaseException):
    """Ends the scheduler in the middle of a step, as kill -9 does."""


@pytest.mark.parametrize("before", [True, False])
def test_a_scheduler_that_is_killed_loses_no_event(scheduling: Scheduling, before: bool) -> None:
    scheduling.put(source=BUCKET)
    report(scheduling, CREATED)
    create = scheduling.ledger.create

    def killed(new: NewJob, *_: Any, **options: Any) -> Job:
        scheduling.ledger.create = create  # type: ignore[method-assign]
        if not before:
            create(new, **options)
        raise Killed

    scheduling.ledger.create = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scheduling.later(COLLECT_S)
    report(scheduling, records(s3_record("2024/b.jpg")))
    scheduling.later(HOLD_S)
    (job,) = scheduling.jobs()
    assert keys_of(scheduling, job.id) == ["2024/a.jpg"]
    scheduling.end()
    (second,) = scheduling.later(MAX_FOLLOW_S)
    assert keys_of(scheduling, second) == ["2024/b.jpg"]


@pytest.mark.parametrize(
    ("source", "keys", "accepted"),
    [
        (BUCKET, ["a.jpg", "/deep/b.jpg", "c.txt", "../d.jpg"], ["2024/a.jpg", "2024/deep/b.jpg"]),
        ({"type": "folder", "path": "/pictures"},
         ["a.jpg", "./deep/b.jpg", "/pictures/c.jpg", "/etc/d.jpg", "../e.jpg", ".f/g.jpg", ""],
         ["a.jpg", "deep/b.jpg", "c.jpg"]),
        ({"type": "folder", "path": "/pictures//x/../y/"},
         ["a.jpg", "/pictures/y/b.jpg", "../c.jpg"],
         ["a.jpg", "b.jpg"]),
        ({"type": "folder", "path": "/pictures", "recursive": False}, ["a.jpg", "b/c.jpg"],
         ["a.jpg"]),
    ],
)  # fmt: skip
def test_keys_relative_to_the_source(
    scheduling: Scheduling, source: dict[str, Any], keys: list[str], accepted: list[str]
) -> None:
    scheduling.put(source=source)
    answer = report(scheduling, {"keys": keys})
    assert answer["ignored"] == len(keys) - len(accepted)
    (job,) = scheduling.later(COLLECT_S)
    assert keys_of(scheduling, job) == sorted(accepted)


@pytest.mark.parametrize("source", [BUCKET, {"type": "folder", "path": "/pictures"}])
def test_a_key_that_is_no_utf_8_is_ignored(scheduling: Scheduling, source: dict[str, Any]) -> None:
    """Redis could not store it."""
    scheduling.put(source=source)
    answer = scheduling.world.ask(
        f"POST {PATH}/events",
        "admin",
        content=rb'{"keys": ["\ud800.jpg", "a.jpg"]}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.json() == {"accepted": 1, "ignored": 1, "waiting_keys": 1}


@pytest.mark.parametrize("kind", ["manifest", "archive"])
def test_a_manifest_or_an_archive_is_read_as_a_whole(scheduling: Scheduling, kind: str) -> None:
    name = {"manifest": "t.csv", "archive": "t.tar"}[kind]
    scheduling.put(source={"type": kind, "uri": f"s3://a/lists/{name}"})
    answer = report(
        scheduling,
        records(s3_record(f"lists/{name}", bucket="a"), s3_record("lists/x.jpg", bucket="a")),
    )
    assert (answer["accepted"], answer["ignored"]) == (1, 1)
    (job,) = scheduling.later(COLLECT_S)
    assert scheduling.ledger.whole(job).source["type"] == kind


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"type": "urls", "urls": ["https://example.com/a.jpg"]}, "is of type urls"),
        ({"type": "list", "sources": [BUCKET]}, "is of type list"),
        ({"type": "bucket", "uri": "s3://photos/{a,b}"}, "is a pattern"),
    ],
)
def test_a_source_of_another_kind_takes_no_events(
    scheduling: Scheduling, source: dict[str, Any], reason: str
) -> None:
    scheduling.put(source=source)
    refused = scheduling.world.ask(f"POST {PATH}/events", "admin", json=CREATED)
    assert refused.status_code == 422
    assert reason in refused.json()["detail"]


def test_bad_notifications_are_refused_and_nothing_waits(scheduling: Scheduling) -> None:
    scheduling.put(source=BUCKET)
    for content in (b"", b"no JSON", b"\xff", b'{"Records": [', b'{"keys": [1]}', b'"text"'):
        headers = {"Content-Type": "application/json"}
        refused = scheduling.world.ask(
            f"POST {PATH}/events", "admin", content=content, headers=headers
        )
        assert refused.status_code in (400, 422), content
        assert refused.headers["content-type"] == "application/problem+json"
    assert scheduling.show()["waiting_keys"] == 0
    missing = scheduling.world.ask(
        "POST /v1/collections/acme/sources/none/events", "admin", json=CREATED
    )
    assert missing.status_code == 404
    assert scheduling.world.ask(f"POST {PATH}/events", "read", json=CREATED).status_code == 403


def test_events_of_another_content_type_are_refused_with_what_to_do(
    scheduling: Scheduling,
) -> None:
    scheduling.put(source=BUCKET)
    headers = {"Content-Type": "text/plain; charset=UTF-8"}  # as SNS sends them
    content = json.dumps(CREATED)
    refused = scheduling.world.ask(f"POST {PATH}/events", "admin", content=content, headers=headers)
    assert refused.status_code == 422
    assert refused.json()["detail"] == (
        "body: it has the content type 'text/plain; charset=UTF-8'; send Content-Type: "
        "application/json"
    )


def test_there_is_a_limit_on_events_that_wait(tmp_path: Path) -> None:
    settings = {"source_buckets": ["s3://photos"], "limits": {"source_events": 2}}
    scheduling = Scheduling(tmp_path, settings)
    scheduling.put(source=BUCKET, paused=True)
    report(scheduling, records(s3_record("2024/a.jpg"), s3_record("2024/b.jpg")))
    full = scheduling.world.ask(
        f"POST {PATH}/events", "admin", json=records(s3_record("2024/c.jpg"))
    )
    assert (full.status_code, full.headers["retry-after"]) == (503, "30")
    assert "CLIPFLEET_LIMITS__SOURCE_EVENTS" in full.json()["detail"]
