"""Adds TLS to a server: `python tls_proxy.py PORT TARGET_PORT CHAIN.pem KEY.pem`."""

import asyncio
import ssl
import sys
from contextlib import suppress
from functools import partial

HOST = "127.0.0.1"


async def main(port: int, target: int, chain: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    serve = partial(_joined, target)
    async with await asyncio.start_server(serve, HOST, port, ssl=context) as server:
        await server.serve_forever()


async def _joined(
    target: int, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
) -> None:
    from_server, to_server = await asyncio.open_connection(HOST, target)
    await asyncio.gather(_copied(from_client, to_server), _copied(from_server, to_client))


async def _copied(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
