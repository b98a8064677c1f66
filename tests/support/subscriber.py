"""A subscriber for tests: a real server that answers as a test wants and records requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.serving import serving


@dataclass(frozen=True)
class Seen:
    """A request as it was received."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Subscriber:
    """
    Answers each path by what `answers` holds for it: one answer after the other, the last for ever.

    A status or a response is sent at once; an event is awaited, at the latest until the server ends, and then 200 is
    sent. `most_open` counts the requests that were open together, by path and, under "", over all of them.
    """

    answers: dict[str, list[int | asyncio.Event | Response]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    most_open: Counter[str] = field(default_factory=Counter)
    origin: str = ""
    _open: Counter[str] = field(default_factory=Counter)
    _ending: asyncio.Event = field(default_factory=asyncio.Event)

    def at(self, path: str) -> list[Seen]:
        return [request for request in self.seen if request.path == path]

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        with self._counted(path):
            try:
                body = await request.body()
            except ClientDisconnect:
                return Response("", 400)
            self.seen.append(Seen(path, dict(request.headers), body))
            script = self.answers.get(path, [200])
            answer = script.pop(0) if len(script) > 1 else script[0]
            if isinstance(answer, asyncio.Event):
                await self._set(answer)
                return Response("late")
            return answer if isinstance(answer, Response) else Response(f"answer {answer}", answer)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = Starlette(routes=[Route("/{rest:path}", self.answer, methods=["POST"])])
        async with serving(app) as origin:
            self.origin = origin
            try:
                yield origin
            finally:
                self._ending.set()

    @contextlib.contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        names = (path, "")
        for name in names:
            self._open[name] += 1
            self.most_open[name] = max(self.most_open[name], self._open[name])
        try:
            yield
        finally:
            for name in names:
                self._open[name] -= 1

    async def _set(self, event: asyncio.Event) -> None:
        """Return when *event* is set or the server ends."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._ending.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
