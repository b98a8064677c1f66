"""A subscriber in a process of its own: answers 200 to every post and remembers which event came when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import httpx

from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.support.waiting import eventually


class Hook(asyncio.Protocol):
    """Just enough of HTTP for posts with a length; `GET /seen` tells and forgets."""

    seen: ClassVar[list[tuple[str, float]]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head[1:])
            whole = end + 4 + int(fields.get("content-length", 0))
            if len(self.data) < whole:
                return
            self.data = self.data[whole:]
            body = b"ok"
            if head[0].startswith("POST"):
                self.seen.append((fields.get("webhook-id", ""), time.monotonic()))
            else:
                body = json.dumps(self.seen).encode()
                self.seen.clear()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


@contextlib.asynccontextmanager
async def subscriber() -> AsyncIterator[str]:
    """Its origin, as long as the block runs."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.subscriber", str(port), cwd=ROOT, stdout=asyncio.subprocess.DEVNULL
    )
    origin = f"http://127.0.0.1:{port}"

    async def there() -> bool:
        with contextlib.suppress(httpx.TransportError):
            await seen(client, origin)
            return True
        return False

    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            await eventually(there)
        yield origin
    finally:
        process.terminate()
        await process.wait()


async def seen(client: httpx.AsyncClient, origin: str) -> list[tuple[str, float]]:
    """(event id, monotonic second) of all posts since the last call."""
    return [(name, at) for name, at in (await client.get(f"{origin}/seen")).json()]


async def _main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Hook, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1])))
