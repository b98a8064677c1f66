"""A small real HTTP server for callbacks: it records requests, answers as configured, and hosts pictures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arrival:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Listener:
    """
    POSTs are `arrivals`; `answers` are given in turn, then 200; a float is a wait in seconds before a 200.
    GETs are answered from `pages`, else 404.
    """

    origin: str = ""
    answers: list[int | float] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    pages: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.origin}/callbacks/token"

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, then the connection ends."""
        try:
            request_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
            method, path, _ = request_line.split(" ")
            pairs = (line.partition(":") for line in lines)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            status, page = await self._answer(method, path, headers, body)
            head = f"HTTP/1.1 {status} Whatever\r\ncontent-length: {len(page)}\r\nconnection: close\r\n\r\n"
            writer.write(head.encode() + page)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if method == "GET":
            return (200, self.pages[path]) if path in self.pages else (404, b"")
        self.arrivals.append(Arrival(path, headers, body))
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return 200, b""
        return answer, b""


@asynccontextmanager
async def listening(pages: dict[str, bytes] | None = None) -> AsyncIterator[Listener]:
    """A listener on a free loopback port."""
    listener = Listener(pages=pages or {})
    talks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.ensure_future(listener.converse(reader, writer))
        talks.add(talk)
        talk.add_done_callback(talks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    listener.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield listener
    finally:
        server.close()
        for talk in list(talks):
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
