"""From a request to the log lines of the workers that carried it out."""

import json
from pathlib import Path
from typing import Any

import pytest

from support import services
from support.stack import Up, finished, photos


def lines(service: Up, part: str) -> list[dict[str, Any]]:
    """Return the lines of a part's log, without one that is still being written."""
    return [json.loads(line) for line in service.log(part).splitlines() if line.endswith("}")]


def about(entries: list[dict[str, Any]], **ids: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if ids.items() <= entry.items()]


@pytest.fixture(scope="module")
def job(service: Up, flickr: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A job that was created by a request with an id."""
    folder = tmp_path_factory.mktemp("photos")
    photos(folder, flickr, 3)
    with service.client() as client, service.http() as http:
        client.create_collection("logged")
        body = {"source": {"type": "folder", "path": str(folder)}}
        headers = {"X-Request-ID": "my-request.1"}
        answer = http.post("/v1/collections/logged/jobs?n=1", json=body, headers=headers)
        assert answer.headers["x-request-id"] == "my-request.1"
        return finished(client, answer.json()["id"])


def test_a_request_leads_to_its_job_and_the_job_to_its_chunks(service: Up, job: Any) -> None:
    entries = about(lines(service, "gateway"), request_id="my-request.1")
    (created,) = about(entries, job_id=job.id)
    assert created["message"] == f"job {job.id} created"
    assert (created["part"], created["collection"]) == ("gateway", "logged")

    def chunks() -> list[dict[str, Any]]:
        return about(lines(service, "worker-ingest-1"), job_id=job.id)

    (worked,) = services.eventually(chunks, 30, "the worker's line")
    assert worked["chunk_id"] == f"{job.id}/1"
    assert worked["part"] == "worker"
    assert "3 images" in worked["message"]


def test_every_request_has_one_line(service: Up, job: Any) -> None:  # noqa: ARG001
    def written() -> list[dict[str, Any]]:
        entries = about(lines(service, "gateway"), request_id="my-request.1")
        return [entry for entry in entries if "route" in entry]

    (line,) = services.eventually(written, 30, "the request's line")
    assert line["message"] == "POST /v1/collections/logged/jobs 202"  # no query: it may be private
    assert (line["route"], line["status"]) == ("/v1/collections/{name}/jobs", 202)
    assert line["seconds"] > 0


@pytest.mark.parametrize("request_id", ["a b", "x" * 65, "é", '"}', ""])
def test_an_id_that_could_spoil_a_log_is_replaced(service: Up, request_id: str) -> None:
    with service.http() as http:
        answer = http.get("/healthz", headers=[(b"x-request-id", request_id.encode())])
    assert len(answer.headers["x-request-id"]) == 16
    replacement = answer.headers["x-request-id"]

    def written() -> Any:
        return about(lines(service, "gateway"), request_id=replacement)

    services.eventually(written, 30, "the request's line")


@pytest.mark.parametrize("part", ["gateway", "planner", "worker-ingest-1", "worker-query"])
def test_every_line_of_every_part_is_json(service: Up, job: Any, part: str) -> None:  # noqa: ARG001
    """Counted from the first JSON line: before it, Celery warns of a worker that runs as root."""
    ours = [_is_ours(line) for line in service.log(part).splitlines()[:-1]]
    assert any(ours)
    assert all(ours[ours.index(True) :])


def _is_ours(line: str) -> bool:
    try:
        return bool({"time", "level", "logger", "message", "part"} <= json.loads(line).keys())
    except ValueError:
        return False
