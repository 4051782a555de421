"""Measures how large, slow or many requests of one client affect other clients.

    python benchmarks/gateway_attacks.py [--seconds 15] [--only NAME ...]

Runs `clipfleet up` with clipfleet-mini and API keys on this machine. During each attack another key
searches by text, and /healthz is requested. For each attack it prints the peak of the gateway's
memory, the longest /healthz, the p99 of the other key's searches with its ratio to the p99 without
an attack, and the status codes that the attack got. Limits: 600 MB, 500 ms, a ratio of 2.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
from callers import texts
from parts import up

from clipfleet import Client
from clipfleet.common.settings import Limits
from clipfleet.testing import write_keys

KEYS = {
    "admin": {"name": "admin", "scopes": ["admin"]},
    "other": {"name": "other", "scopes": ["read"]},
    "reader": {"name": "reader", "scopes": ["read"]},
    "writer": {"name": "writer", "scopes": ["write"]},
}
ROWS, CAPTION = 2_000, "x" * 4_000
OTHER_ROWS = 1_000
JSON = "application/json"
FORM = "multipart/form-data; boundary=x"
SEARCH = "/v1/collections/big/search"
MB = 1_000_000


@dataclass
class Attacker:
    port: int
    seconds: float
    seen: Counter[str] = field(default_factory=Counter)

    async def send(
        self, path: str, key: str, kind: str, size: int | None, body: AsyncIterator[bytes]
    ) -> None:
        """Send a request as raw bytes and count its status."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
        who = f"Authorization: Bearer {key}\r\n" if key else ""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{who}Content-Type: {kind}\r\n{length}"
        answer = asyncio.create_task(reader.read(12))
        try:
            writer.write(head.encode() + b"\r\n\r\n")
            async for piece in body:
                writer.write(piece if size is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                if answer.done():
                    break
            if size is None and not answer.done():
                writer.write(b"0\r\n\r\n")
        except ConnectionError:
            pass
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(self.seconds):
                self.seen[(await answer).decode(errors="replace")[9:] or "hung up"] += 1
        answer.cancel()
        writer.close()


Attack = Callable[[Attacker], Awaitable[object]]


async def pieces(total: int, piece: bytes) -> AsyncIterator[bytes]:
    for _ in range(total // len(piece)):
        yield piece


async def slowly(first: bytes, seconds: float) -> AsyncIterator[bytes]:
    """Yield the first bytes at once, then one byte every two seconds."""
    yield first
    for _ in range(int(seconds / 2)):
        await asyncio.sleep(2)
        yield b" "


async def one_json(it: Attacker) -> None:
    """Send the densest JSON as a filter, with and without Content-Length."""
    dense = b'{"a":1},' * 125_000
    for size in (95 * MB, None, 40 * MB):
        await it.send(SEARCH, "reader", JSON, size, pieces(size or 95 * MB, dense))


async def false_type(it: Attacker) -> None:
    for kind in ("multipart/mixed; boundary=x", FORM, "text/plain"):
        for size in (600 * MB, None):
            await it.send(SEARCH, "reader", kind, size, pieces(600 * MB, bytes(MB)))


async def strangers(it: Attacker) -> None:
    """Send requests without a key."""
    each = (it.send(SEARCH, "", JSON, 95 * MB, pieces(95 * MB, bytes(MB))) for _ in range(50))
    await asyncio.gather(*each)


async def images(it: Attacker) -> None:
    """Send 20 searches at once, each with the largest allowed image, which is not an image."""
    limit = Limits().inline_bytes // 3 * 4

    async def body() -> AsyncIterator[bytes]:
        yield b'{"image": {"base64": "'
        async for piece in pieces(limit, b"A" * (limit // 40)):
            yield piece
        yield b'"}}'

    size = limit // 40 * 40 + len('{"image": {"base64": ""}}')
    each = (it.send(SEARCH, "reader", JSON, size, body()) for _ in range(20))
    await asyncio.gather(*each)


async def uploads(it: Attacker) -> None:
    """Send 200 uploads of 600 files of 0.9 MB, and finish none of them."""

    async def body() -> AsyncIterator[bytes]:
        for n in range(60):
            head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{n}"\r\n\r\n'
            yield head.encode()
            for _ in range(9):
                yield bytes(100_000)
            yield b"\r\n"
        await asyncio.sleep(it.seconds)

    path = "/v1/collections/big/images"
    each = (it.send(path, "writer", FORM, 600 * MB, body()) for _ in range(200))
    await asyncio.gather(*each)


async def batches(it: Attacker) -> None:
    """Send batches of 64 ids with top_k 1,000, two at once, again and again."""
    queries = [{"id": f"image {n}", "top_k": 1_000} for n in range(64)]
    until = time.monotonic() + it.seconds

    async def again() -> None:
        who = {"Authorization": "Bearer reader"}
        async with httpx.AsyncClient(timeout=120, headers=who) as http:
            while time.monotonic() < until:
                url = f"http://127.0.0.1:{it.port}{SEARCH}/batch"
                answer = await http.post(url, json={"queries": queries})
                it.seen[str(answer.status_code)] += 1
                for result in answer.json()["results"] if answer.is_success else ():
                    it.seen[
                        f"query {result['problem']['status'] if 'problem' in result else 200}"
                    ] += 1

    await asyncio.gather(again(), again())


async def slow_bodies(it: Attacker) -> None:
    each = (
        it.send(SEARCH, "reader", JSON, 900_000, slowly(b'{"text": "' + b"a" * 50_000, it.seconds))
        for _ in range(300)
    )
    await asyncio.gather(*each)


async def slow_headers(it: Attacker) -> None:
    await asyncio.gather(*(_connection(it, b"POST / HTTP/1.1\r\nX: ") for _ in range(300)))


async def idle_connections(it: Attacker) -> None:
    await asyncio.gather(*(_connection(it, b"") for _ in range(1_000)))


async def _connection(it: Attacker, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    answer = asyncio.create_task(reader.read(1))
    with suppress(ConnectionError):
        async for piece in slowly(data, it.seconds):
            if data:
                writer.write(piece)
                await writer.drain()
            if answer.done():
                break
    with suppress(ConnectionError):
        it.seen["closed" if answer.done() and await answer == b"" else "open"] += 1
    answer.cancel()
    writer.close()


async def slow_readers(it: Attacker) -> None:
    """Ask for 60 documents on each of 2,100 connections, and read 2,000 bytes of them a second."""
    until = time.monotonic() + it.seconds
    await asyncio.gather(*(_read_slowly(it, until) for _ in range(2_100)))


async def _read_slowly(it: Attacker, until: float) -> None:
    loop = asyncio.get_running_loop()
    while time.monotonic() < until:
        with suppress(ConnectionError), socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            line.setblocking(False)
            await loop.sock_connect(line, ("127.0.0.1", it.port))
            await loop.sock_sendall(
                line, b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 60
            )
            while time.monotonic() < until and await loop.sock_recv(line, 4_000):
                await asyncio.sleep(2)
        it.seen["open" if time.monotonic() >= until else "closed"] += 1


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        one_json, false_type, strangers, images, uploads, batches, slow_bodies, slow_headers,
        idle_connections, slow_readers,
    )
}  # fmt: skip


@dataclass
class Measurement:
    """Times of the other clients in milliseconds, and the gateway's memory in MB."""

    searches: list[float] = field(default_factory=list)
    healths: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def p99(self) -> float:
        return float(np.percentile(self.searches, 99))

    def __str__(self) -> str:
        return (
            f"gateway {max(self.memory):.0f} MB, worst /healthz {max(self.healths):.0f} ms, "
            f"another key's search p50 {np.percentile(self.searches, 50):.0f} p99 {self.p99:.0f} ms"
            f" of {len(self.searches)}"
        )


@asynccontextmanager
async def watching(
    port: int, gateway: psutil.Process, words: Iterator[str]
) -> AsyncIterator[Measurement]:
    seen, over = Measurement(), asyncio.Event()
    url = f"http://127.0.0.1:{port}"

    async def search() -> None:
        who = {"Authorization": "Bearer other"}
        async with httpx.AsyncClient(base_url=url, headers=who, timeout=60) as http:
            while not over.is_set():
                began = time.perf_counter()
                body = {"text": next(words), "top_k": 10}
                answer = await http.post("/v1/collections/theirs/search", json=body)
                answer.raise_for_status()
                seen.searches.append(1e3 * (time.perf_counter() - began))
                await asyncio.sleep(0.01)

    async def look() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            while not over.is_set():
                began = time.perf_counter()
                (await http.get("/healthz")).raise_for_status()
                seen.healths.append(1e3 * (time.perf_counter() - began))
                seen.memory.append(peak_mb(gateway))
                await asyncio.sleep(0.02)

    Path(f"/proc/{gateway.pid}/clear_refs").write_text("5")  # resets the peak
    async with asyncio.TaskGroup() as group:
        group.create_task(search())
        group.create_task(look())
        try:
            yield seen
        finally:
            over.set()


def peak_mb(process: psutil.Process) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def fill(client: Client) -> None:
    drawn = random.Random(1)
    client.create_collection("theirs")
    dim = client.create_collection("big").dim
    for name, rows, caption in (("big", ROWS, CAPTION), ("theirs", OTHER_ROWS, "")):
        client.upsert(
            name,
            (
                {
                    "id": f"image {n}",
                    "values": [drawn.gauss(0, 1) for _ in range(dim)],
                    "metadata": {"caption": caption},
                }
                for n in range(rows)
            ),
        )
    time.sleep(12)  # longer ago than Milvus' staleness


def attack(name: str, port: int, seconds: float) -> Counter[str]:
    it = Attacker(port, seconds)
    asyncio.run(ATTACKS[name](it))  # type: ignore[arg-type]
    return it.seen


async def measured(
    name: str, port: int, gateway: psutil.Process, words: Iterator[str], seconds: float
) -> tuple[Measurement, Counter[str]]:
    """Run an attack in a process of its own, so that it does not slow the measuring clients."""
    async with watching(port, gateway, words) as seen:
        if not name:
            await asyncio.sleep(seconds)
            return seen, Counter()
        command = ["--attack", name, "--port", str(port), "--seconds", str(seconds)]
        child = await asyncio.create_subprocess_exec(
            "nice", "-n", "10", sys.executable, __file__, *command,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await child.communicate()
        assert child.returncode == 0
        return seen, Counter(json.loads(output))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--only", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--attack", choices=ATTACKS)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    if args.attack:
        print(json.dumps(attack(args.attack, args.port, args.seconds)))
        return
    words = texts()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_keys(folder / "keys.json", KEYS)
        os.environ["CLIPFLEET_KEYS_FILE"] = str(folder / "keys.json")
        os.environ["CLIPFLEET_API_KEY"] = "admin"
        with up(folder / "data") as (client, port):
            fill(client)
            gateway = get_gateway(port)
            idle_p99 = 0.0
            for name in itertools.chain([""], args.only):
                seen, answers = asyncio.run(measured(name, port, gateway, words, args.seconds))
                idle_p99 = idle_p99 or seen.p99
                ratio = f"({seen.p99 / idle_p99:.1f} of idle)"
                print(f"{name or 'nothing'}: {seen} {ratio}; {dict(answers)}", flush=True)
                time.sleep(3)
            remaining = list((folder / "data" / "blobs" / "uploads").glob("*"))
            print(f"left of the uploads: {len(remaining)}; load {os.getloadavg()[0]:.1f}")


def get_gateway(port: int) -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(port) in words and "uvicorn" in words:
            return process
    raise LookupError("there is no gateway")


if __name__ == "__main__":
    main()
