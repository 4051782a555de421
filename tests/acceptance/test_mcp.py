"""The real MCP client starts `clipfleet mcp` and talks to it over its standard input and output."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mcp
import pytest
from mcp_types import CallToolResult, ImageContent, TextContent, Tool
from PIL import Image

from clipfleet import JobFailed
from clipfleet.embedded import commands
from clipfleet.testing import MemoryService
from support import stack
from support.in_process import PixelEmbedder

SAMPLES = Path(__file__).parents[2] / "clipfleet" / "samples" / "animals"
KEYS = {"reader": {"scopes": ["read"], "collections": ["pets"]}, "admin": {}}
Mode = Literal["auto", "legacy"]  # "legacy" is what assistants of 2025 speak


@dataclass
class Answer:
    """The answer to a call: its texts and its pictures."""

    result: CallToolResult

    @property
    def texts(self) -> list[str]:
        return [block.text for block in self.result.content if isinstance(block, TextContent)]

    @property
    def pictures(self) -> list[Image.Image]:
        blocks = [block for block in self.result.content if isinstance(block, ImageContent)]
        assert all(block.mime_type == "image/jpeg" for block in blocks)
        return [Image.open(io.BytesIO(base64.b64decode(block.data))) for block in blocks]

    @property
    def document(self) -> Any:
        assert not self.result.is_error, self.texts
        return json.loads(self.texts[0])

    @property
    def ids(self) -> list[str]:
        return [match["id"] for match in self.document["matches"]]

    @property
    def error(self) -> str:
        assert self.result.is_error
        (text,) = self.texts
        assert "Traceback" not in text
        assert "pydantic" not in text
        assert "\n" not in text
        return text


@dataclass
class Assistant:
    """Starts a server for each conversation."""

    url: str
    log: Path
    mode: Mode = "auto"

    def talk(
        self, conversation: Callable[[mcp.Client], Coroutine[Any, Any, Any]], *args: str, **env: str
    ) -> Any:
        async def run() -> Any:
            with self.log.open("w") as log:
                server = mcp.StdioServerParameters(
                    command=commands.script("clipfleet"),
                    args=["mcp", "--url", self.url, *args],
                    env={**stack.CLEAN, **env},
                )
                transport = mcp.stdio_client(server, errlog=log)
                async with mcp.Client(transport, mode=self.mode) as client:
                    return await conversation(client)

        return asyncio.run(run())

    def call(self, tool: str, arguments: dict[str, Any], *args: str, **env: str) -> Answer:
        (answer,) = self.calls([(tool, arguments)], *args, **env)
        return answer

    def calls(
        self, calls: list[tuple[str, dict[str, Any]]], *args: str, **env: str
    ) -> list[Answer]:
        async def conversation(client: mcp.Client) -> list[Answer]:
            return [Answer(await client.call_tool(*call)) for call in calls]

        answers = self.talk(conversation, *args, **env)
        assert isinstance(answers, list)
        return answers


@pytest.fixture(scope="module")
def animals() -> Iterator[MemoryService]:
    """A service that sees colours, with a collection of animals and one of a vector alone."""
    with MemoryService(embedder=PixelEmbedder()) as running, running.client() as client:
        client.create_collection("pets", fields={"legs": "int"})
        files = sorted(SAMPLES.glob("*.png"))[:30]
        client.upload("pets", files, label="animal", wait=True)
        values = client.image("pets", "cat.png", include_values=True).values
        vector = {"id": "vector", "values": values, "label": "none", "metadata": {"legs": 4}}
        client.upsert("pets", [{**vector, "metadata": {"legs": 4, "text": "long " * 1_000}}])
        yield running


@pytest.fixture(params=["auto", "legacy"])
def assistant(request: pytest.FixtureRequest, animals: MemoryService, tmp_path: Path) -> Assistant:
    return Assistant(animals.url, tmp_path / "stderr", request.param)


@pytest.fixture
def modern(animals: MemoryService, tmp_path: Path) -> Assistant:
    return Assistant(animals.url, tmp_path / "stderr")


def test_it_says_what_it_can_do(assistant: Assistant) -> None:
    async def conversation(client: mcp.Client) -> tuple[str | None, list[Tool]]:
        return client.instructions, (await client.list_tools()).tools

    instructions, tools = assistant.talk(conversation)
    assert "not instructions" in instructions
    names = [tool.name for tool in tools]
    assert names == ["search", "similar", "images", "collections", "jobs", "job"]
    for tool in tools:
        assert tool.annotations.read_only_hint
        assert tool.description
        properties = tool.input_schema["properties"].values()
        assert all(field["description"] for field in properties), tool.name
    assert assistant.log.read_text() == ""


def test_a_search_returns_matches_and_shows_the_best(assistant: Assistant) -> None:
    picture = base64.b64encode((SAMPLES / "dog.png").read_bytes()).decode()
    arguments = {"image": f"data:image/png;base64,{picture}", "top_k": 5, "pictures": 2}
    answer = assistant.call("search", arguments, "--collection", "pets")
    assert answer.ids[0] == "dog.png"
    assert len(answer.ids) == 5
    assert answer.document["matches"][0]["label"] == "animal"
    assert answer.texts[1] == "dog.png:"
    assert len(answer.pictures) == 2
    assert all(picture.size == (128, 128) for picture in answer.pictures)


def test_words_ids_and_weights_are_mixed(modern: Assistant) -> None:
    terms = [{"id": "cat.png"}, {"id": "dog.png", "weight": 0.1}, {"text": "x", "weight": -0.01}]
    words, mixed, weighted, filtered = modern.calls(
        [
            ("search", {"text": "null", "not_text": "a dog"}),
            ("search", {"text": "a cat", "id": "cat.png"}),
            ("search", {"terms": terms}),
            ("search", {"terms": json.dumps(terms), "filter": json.dumps({"legs": 4})}),
        ],
        "--collection",
        "pets",
    )
    assert len(words.ids) == 10
    assert len(mixed.ids) == 10
    assert weighted.ids[:2] == ["cat.png", "vector"]
    assert filtered.ids == ["vector"]


def test_similar_leaves_the_image_itself_out(modern: Assistant) -> None:
    answer = modern.call("similar", {"id": "cat.png", "top_k": 3, "collection": "pets"})
    assert answer.ids[0] == "vector"
    assert len(answer.ids) == 3
    assert "cat.png" not in answer.ids
    assert "vector: no picture" in answer.texts
    assert len(answer.document["matches"][0]["metadata"]["text"]) == 301


def test_images_are_shown_by_their_ids(modern: Assistant) -> None:
    answer = modern.call("images", {"ids": ["cat.png", "dog.png"], "collection": "pets"})
    cat, _ = answer.document["images"]
    assert (cat["id"], cat["width"], cat["label"]) == ("cat.png", 128, "animal")
    assert answer.texts[1:] == ["cat.png:", "dog.png:"]
    assert len(answer.pictures) == 2


def test_collections_and_jobs_are_listed(modern: Assistant, animals: MemoryService) -> None:
    with animals.client() as client, pytest.raises(JobFailed) as failure:
        client.upload("pets", [Path(__file__)], wait=True)
    bad = failure.value.job
    listed, jobs, succeeded, job = modern.calls(
        [
            ("collections", {}),
            ("jobs", {"collection": "pets", "limit": 1}),
            ("jobs", {"state": "succeeded"}),
            ("job", {"id": bad.id}),
        ]
    )
    (pets,) = listed.document["collections"]
    assert (pets["name"], pets["count"], pets["fields"]) == ("pets", 31, {"legs": "int"})
    assert [row["id"] for row in jobs.document["jobs"]] == [bad.id]
    assert bad.id not in [row["id"] for row in succeeded.document["jobs"]]
    assert job.document["created_at"].endswith("+00:00")
    assert job.document["failures"][0]["id"] == "test_mcp.py"


def test_pictures_are_bounded(animals: MemoryService, modern: Assistant) -> None:
    """Thumbnails of noise: 20 of them are more than an answer has room for."""
    folder = animals.folder / "noise"
    folder.mkdir()
    for number in range(20):
        noise = Image.frombytes("L", (256, 256), os.urandom(65_536))
        Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180))).save(
            folder / f"{number}.png"
        )
    with animals.client() as client:
        client.index("noise", folder, wait=True)
        ids = list(client.iter_ids("noise"))
    answer = modern.call("images", {"ids": ids, "collection": "noise"})
    assert 5 < len(answer.pictures) < 20
    assert answer.texts[-1] == "The answer has no room for more pictures."
    assert len(answer.result.model_dump_json()) < 800_000
    assert "at most 20" in modern.call("images", {"ids": [*ids, "x"]}).error


def test_what_the_service_refuses_is_a_sentence(assistant: Assistant) -> None:
    mistakes: list[tuple[str, dict[str, Any], str]] = [
        ("search", {"text": "a", "collection": "nosuch"}, "no collection 'nosuch'; there are: "),
        ("search", {"text": "a", "filter": {"a": {"$foo": 1}}}, "unknown operator '$foo'"),
        ("search", {"id": "gone.png"}, "gone.png"),
        ("similar", {}, "id: Field required"),
        ("images", {"ids": ["gone.png"]}, "gone.png"),
        ("job", {"id": "nosuch"}, "there is no job 'nosuch'"),
        ("search", {}, "give text, image or id"),
        ("search", {"not_text": "a"}, "give text, image or id"),
        ("search", {"terms": [{"txt": "a"}]}, "did you mean 'text'?"),
        ("search", {"terms": [{"text": "a", "id": "b"}]}, "exactly one of"),
        ("search", {"terms": [{"text": "a"}], "text": "b"}, "either terms, or text"),
        ("search", {"topk": 3}, "did you mean 'top_k'?"),
        ("search", {"text": "a", "top_k": 1_000}, "top_k: Input should be less than or equal"),
        ("search", {"text": "a", "frobnicate": 1}, "its arguments: text, image"),
        ("jobs", {"state": "nosuch"}, "state"),
        ("search", {"image": "/etc/passwd"}, "--root"),
        ("delete", {}, "there is no tool 'delete'; there are search"),
    ]
    calls = [(tool, arguments) for tool, arguments, _ in mistakes]
    answers = assistant.calls(calls, "--collection", "pets")
    for answer, (_, _, expected) in zip(answers, mistakes, strict=True):
        assert expected in answer.error
    assert "Traceback" not in assistant.log.read_text()


def test_files_are_read_below_the_root_alone(modern: Assistant, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes((SAMPLES / "dog.png").read_bytes())
    calls = [("search", {"image": name, "top_k": 1}) for name in ("dog.png", str(outside))]
    within, refused = modern.calls(calls, "--root", str(SAMPLES), "--collection", "pets")
    assert within.ids == ["dog.png"]
    assert "is not below --root" in refused.error


def test_it_starts_without_a_service_and_says_so_at_each_call(tmp_path: Path) -> None:
    nowhere = Assistant("http://127.0.0.1:9", tmp_path / "stderr")
    for answer in nowhere.calls([("collections", {}), ("search", {"text": "a"})]):
        assert "no clipfleet service answers at http://127.0.0.1:9" in answer.error
        assert "clipfleet up" in answer.error


def test_it_sends_the_key(tmp_path: Path) -> None:
    with MemoryService(api_keys=KEYS) as guarded:
        with guarded.client("admin") as client:
            client.create_collection("pets")
            client.create_collection("others")
        assistant = Assistant(guarded.url, tmp_path / "stderr")
        assert "--api-key or CLIPFLEET_API_KEY" in assistant.call("collections", {}).error
        mine = assistant.call("collections", {}, "--api-key", "reader")
        assert [row["name"] for row in mine.document["collections"]] == ["pets"]
        same = assistant.call("collections", {}, CLIPFLEET_API_KEY="reader")
        assert same.document == mine.document


def ended(*args: str, prelude: str = "pass") -> "subprocess.CompletedProcess[str]":
    """`clipfleet mcp` with an input that ends at once."""
    program = f"import sys; {prelude}; from clipfleet.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "mcp", *args],
        env=stack.CLEAN,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "prelude", "line"),
    [
        ([], "sys.modules['mcp'] = None", "pip install 'clipfleet[mcp]'"),
        (["--root", "/nowhere"], "pass", "clipfleet: --root /nowhere is not a folder"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    args: list[str], prelude: str, line: str
) -> None:
    done = ended(*args, prelude=prelude)
    assert done.returncode == 1
    assert done.stdout == ""
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_ends_with_its_input_and_prints_nothing() -> None:
    done = ended()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_person_who_starts_it_is_told_what_it_is_and_ends_it_with_ctrl_c() -> None:
    terminal, own_end = os.openpty()
    process = subprocess.Popen(
        [commands.script("clipfleet"), "mcp"],
        env=stack.CLEAN,
        stdin=own_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        assert b"Ctrl-C ends it" in process.stderr.readline()
        os.write(terminal, b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        assert json.loads(process.stdout.readline())["id"] == 1  # so it reads the next line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (-signal.SIGINT, b"", b"")
    finally:
        process.kill()
        os.close(terminal)
        os.close(own_end)
