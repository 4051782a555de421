"""What the command line says when something is wrong or not there yet, in its user's words."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipfleet import Client
from clipfleet.cli import app, doctor_probe
from clipfleet.testing import HashEmbedder, MemoryService
from support.in_process import GatedImages, InProcess, run_cli

MUSIC = Path(str(files("clipfleet"))) / "samples" / "music"


@pytest.fixture(scope="module")
def service() -> Iterator[InProcess]:
    with InProcess() as running, running.client() as client:
        client.index("images", MUSIC, wait=True)
        client.create_collection("empty")
        yield running


def error(service: InProcess, *args: str) -> str:
    """The only line of the error of a command."""
    done = service.cli(*args)
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("clipfleet: ")


def test_a_filter_that_is_no_json_is_shown_one_that_is() -> None:
    for wrong in ("year > 2010", '["label"]'):
        done = CliRunner().invoke(app, ["search", "x", "--filter", wrong])
        assert done.exit_code == 2
        assert '{"label": "church",' in done.output
        assert "char 0" not in done.output
    deep = '{"a":' * 5_000 + "1" + "}" * 5_000
    done = CliRunner().invoke(app, ["search", "x", "--filter", deep])
    assert done.exit_code == 2
    assert "--filter is nested too deeply" in done.output


def test_an_unknown_collection_is_answered_with_the_names_there_are(service: InProcess) -> None:
    assert error(service, "search", "x", "--collection", "nosuch") == (
        "there is no collection 'nosuch'; there are: empty, images"
    )
    assert error(service, "collections", "show", "image") == (
        "there is no collection 'image'; did you mean 'images'?"
    )
    with InProcess() as nothing:
        assert error(nothing, "collections", "count", "mine") == (
            "there is no collection 'mine' yet; `clipfleet index FOLDER --collection mine` "
            "creates it"
        )


def test_an_error_names_options_and_no_fields_of_the_api(service: InProcess) -> None:
    assert error(service, "search", "x", "--top-k", "5000") == (
        "--top-k is 5000; the limit is 1000"
    )
    assert error(service, "search", "x", "--min-score", "nan").startswith("--min-score: ")
    assert error(service, "search", "").startswith("TEXT: ")
    assert error(service, "search", "x", "--namespace", "").startswith("--namespace: ")
    filter_error = error(service, "search", "x", "--filter", '{"year": {"$foo": 1}}')
    assert "top_k" not in filter_error


def test_nothing_found_in_an_empty_collection_says_so(service: InProcess) -> None:
    done = service.cli("search", "x", "--collection", "empty")
    assert done.stdout == "no matches\n"
    assert "The collection is empty: clipfleet index FOLDER --collection empty" in done.stderr


def test_nothing_found_because_of_a_filter_says_so(service: InProcess) -> None:
    done = service.cli("search", "x", "--filter", '{"label": "nosuch"}')
    assert "none passes the limits of this search" in done.stderr


def test_nothing_found_while_a_job_runs_names_the_job() -> None:
    embedder = GatedImages()
    with InProcess(embedder=embedder) as running, running.client() as client:
        job = client.index("images", MUSIC)
        assert embedder.reached.wait(60)
        done = running.cli("search", "x")
        embedder.gate.set()
        client.wait(job)
    assert done.stdout == "no matches\n"
    assert f"Job {job.id} is still running, 0 of " in done.stderr
    assert "empty" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CLIPFLEET_OPEN", "perhaps", "CLIPFLEET_OPEN: "),
        ("CLIPFLEET_LIMITS__TOP_K", "x", "CLIPFLEET_LIMITS__TOP_K: "),
        ("CLIPFLEET_CORS_ORIGINS", "foo", "CLIPFLEET_CORS_ORIGINS is not JSON"),
    ],
)
def test_a_setting_that_is_not_valid_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    expected: str,
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.argv", ["clipfleet", "gateway"])
    from clipfleet.cli import main

    with pytest.raises(SystemExit):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipfleet: {expected}")


PAGE = "<html>\r\n<head><title>%d Something</title></head>\r\n<body>nginx</body></html>"


class OtherServer(BaseHTTPRequestHandler):
    """Answers with pages for browsers. The first part of the path is the status."""

    server_version, sys_version = "nginx/1.26.3", ""

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        self.send_response(status)
        if status == 301:
            self.send_header("Location", "https://photos.example.org/")
        body = (PAGE % status).encode()
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, "no clipfleet of this version answers at"),
        (301, "redirects to https://photos.example.org/: give that address instead"),
        (404, "another server (nginx/1.26.3) is there, whose answer is 404 Not Found"),
        (405, "whose answer is 405"),
        (413, "a server before clipfleet (nginx/1.26.3) answered 413: the body is too large"),
        (502, "answered 502: it does not reach clipfleet"),
        (504, "answered 504: clipfleet did not answer it in time"),
    ],
)
def test_another_server_is_told_in_one_line(other_server: str, status: int, expected: str) -> None:
    done = run_cli(f"{other_server}/{status}", "collections", "list")
    assert done.returncode == 1
    line = done.stderr.splitlines()[0]
    assert expected in line
    for raw in ("<", "\\r", "\\n"):
        assert raw not in done.stderr


@pytest.mark.parametrize(
    "kind", ["127.0.0.1:{port}", "localhost:{port}", "http://localhost:{port}/"]
)
def test_an_address_needs_no_scheme(service: InProcess, kind: str) -> None:
    done = run_cli(
        kind.format(port=service.url.rpartition(":")[2]), "collections", "list", "--json"
    )
    assert len(json.loads(done.stdout)["collections"]) == 2


@pytest.mark.parametrize("wrong", ["ftp://localhost", "http://", "localhost:port", "http://a b"])
def test_what_is_no_address_is_named(wrong: str) -> None:
    done = run_cli(wrong, "collections", "list")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"clipfleet: --url: {wrong!r} is no address such as http://127.0.0.1")


def traces(client: Client) -> list[str]:
    """Jobs and collections of a probe."""
    jobs = [job.collection for job in client.jobs()]
    return [*jobs, *(collection.name for collection in client.collections())]


STEPS = ["sending images", "indexing images", "searching", "reading the workers' counts"]


@pytest.mark.parametrize("step", STEPS)
def test_a_probe_that_is_interrupted_leaves_nothing(step: str) -> None:
    def interrupt(now: str) -> None:
        if now == step:
            raise KeyboardInterrupt

    with MemoryService(embedder=HashEmbedder(16)) as running, running.client() as client:
        with pytest.raises(KeyboardInterrupt):
            doctor_probe.probe(client, sorted(MUSIC.glob("*.png")), 10, interrupt)
        assert traces(client) == []


def test_a_probe_leaves_nothing_and_other_jobs_stay() -> None:
    with InProcess() as running, running.client() as client:
        kept = client.index("images", MUSIC, wait=True)
        doctor_probe.probe(client, sorted(MUSIC.glob("*.png")), 10, lambda _: None)
        assert traces(client) == ["images", "images"]
        assert client.job(kept).done == len(list(MUSIC.glob("*.png")))
