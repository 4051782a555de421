"""A TCP proxy that delays data and drops connections, like a bad line between two hosts.

    python flaky_proxy.py SEED PORT=HOST:PORT ...

Each piece of data waits up to DELAY_S. A connection is cut after a megabyte on average, in the
middle of a piece.
"""

import asyncio
import random
import sys
from contextlib import suppress
from functools import partial

HERE = "127.0.0.1"
DELAY_S = 0.03
CUT = 0.012  # of the pieces


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(16_384):
            await asyncio.sleep(random.uniform(0, DELAY_S))
            if random.random() < CUT:
                writer.write(piece[: len(piece) // 2])
                return
            writer.write(piece)
            await writer.drain()


async def line(near: asyncio.StreamReader, back: asyncio.StreamWriter, target: str) -> None:
    host, port = target.split(":")
    with suppress(OSError):
        far, there = await asyncio.open_connection(host, port)
        ways = [asyncio.create_task(carry(near, there)), asyncio.create_task(carry(far, back))]
        _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in pending:
            way.cancel()
        there.close()
    back.close()


async def main(lines: list[str]) -> None:
    servers = []
    for spec in lines:
        port, target = spec.split("=")
        servers.append(await asyncio.start_server(partial(line, target=target), HERE, int(port)))
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    random.seed(int(sys.argv[1]))
    asyncio.run(main(sys.argv[2:]))
