"""HTTP clients that use little processor time, so that they do not slow the service."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator

WORDS = ("red", "old", "small", "wooden", "broken", "shiny", "empty", "round", "tall", "quiet")
THINGS = ("church", "truck", "parachute", "golf ball", "chain saw", "horn", "dog", "fish", "pump")


def texts() -> Iterator[str]:
    """Yield texts, each of them once, because workers cache the embeddings of texts."""
    for number in itertools.count():
        word, thing = WORDS[number % len(WORDS)], THINGS[number % len(THINGS)]
        yield f"a photo of a {word} {thing} with the number {number}"


class Caller:
    """A client with one connection."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path = port, path

    async def __aenter__(self) -> "Caller":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def search(self, text: str, top_k: int = 10) -> float:
        """Search and return the seconds until ten matches arrived."""
        began = time.perf_counter()
        answer = await self.post({"text": text, "top_k": top_k})
        seconds = time.perf_counter() - began
        assert len(json.loads(answer)["matches"]) == top_k
        return seconds

    async def post(self, content: object) -> bytes:
        """Send JSON and return the body of the answer, which must be a 200."""
        body = json.dumps(content).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        status, *headers = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(line for line in headers if line.startswith(b"content-length:"))
        answer = await self._reader.readexactly(int(length.partition(b":")[2]))
        assert b" 200 " in status, answer
        return answer


Ask = Callable[[Caller, str], Awaitable[object]]


async def at_once(
    callers: int,
    seconds: float,
    port: int,
    path: str,
    words: Iterator[str],
    ask: Ask = Caller.search,
) -> float:
    """Answers per second to several clients, each of which sends the next text at once."""
    async with asyncio.TaskGroup() as group:
        until = time.perf_counter() + seconds
        calls = (_ask_on(port, path, words, until, ask) for _ in range(callers))
        tasks = [group.create_task(call) for call in calls]
    return sum(task.result() for task in tasks) / seconds


async def _ask_on(port: int, path: str, words: Iterator[str], until: float, ask: Ask) -> int:
    answered = 0
    async with Caller(port, path) as caller:
        while time.perf_counter() < until:
            await ask(caller, next(words))
            answered += time.perf_counter() < until
    return answered
