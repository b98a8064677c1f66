"""`receiver listen` in a process of its own, and an application that its events are forwarded to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from standardwebhooks.webhooks import Webhook

from tests.support import forking
from tests.support.cli import bare_environment
from tests.support.ports import free_port
from tests.support.waiting import patiently


class Application:
    """A downstream application: checks every event with the official library and keeps it."""

    def __init__(self, secret: str) -> None:
        self.port = free_port()
        self.events: list[tuple[str, str]] = []
        self.status = 200
        self._webhook = Webhook(secret)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._answer, "127.0.0.1", self.port)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers["content-length"]))
                self._webhook.verify(body, headers)
                self.events.append((headers["webhook-id"], json.loads(body)["type"]))
                writer.write(f"HTTP/1.1 {self.status} X\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def listening(tmp_path: Path, *arguments: str, **settings: str) -> AsyncIterator[forking.Forked]:
    """A `receiver listen` of its own process; its output stands in `listen.out` and `listen.err`."""
    with (tmp_path / "listen.out").open("wb") as out, (tmp_path / "listen.err").open("wb") as err:
        process = await forking.fork(
            "receiver",
            "listen",
            *arguments,
            environment=bare_environment(**settings),
            directory=tmp_path,
            out=out,
            err=err,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await patiently(process.wait())
