"""
The stream that says *what* changed, never *to what*: pages fetch the server's own fragment then.

One reader follows the logs for all pages, a little more than once a second, and only while there are any; with many
pages less often, and each is sent the change at a moment of its own: what they fetch then comes one after the other,
and callbacks are answered in between. A page that has missed something is sent that everything changed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from receiver.runtime.loops import Loop
from receiver.store.changes import Changed, ChangeLog, Place

_SECONDS = 0.8
_SECONDS_PER_PAGE = 0.05
_MOST_SECONDS = 5.0
_HEARTBEAT_SECONDS = 15.0
MOST_PAGES = 500


class Live:
    """Follows the logs for any number of pages; *stopping* ends them all."""

    def __init__(self, log: ChangeLog, stopping: asyncio.Event) -> None:
        self._log = log
        self._stopping = stopping
        self._place: Place | None = None
        self._frame = b""
        self._count = 0
        self.version = 0
        """Goes up whenever something may have changed."""
        self._next = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.pages = 0

    async def frames(self, still: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        """The stream of one page, as long as *still* says so every few seconds."""
        self.pages += 1
        try:
            await self._follow()
            seen = self._count
            yield b"retry: 2000\nevent: open\ndata: {}\n\n"
            while not self._stopping.is_set():
                upcoming = self._next
                try:
                    if seen == self._count:
                        async with asyncio.timeout(_HEARTBEAT_SECONDS):
                            await upcoming.wait()
                    await self._spread()
                    missed, seen = self._count - seen > 1, self._count
                    yield _EVERYTHING if missed else self._frame
                except TimeoutError:
                    if not await still():
                        return
                    yield b": heartbeat\n\n"
        finally:
            self.pages -= 1
            if not self.pages and self._following is not None:
                self._following.cancel()
                self._following = self._place = None

    async def _spread(self) -> None:
        """Wait for a moment within the time by which many pages make the changes come less often."""
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, self._interval() - _SECONDS)):
                await self._stopping.wait()

    def _interval(self) -> float:
        return min(_SECONDS + _SECONDS_PER_PAGE * self.pages, _MOST_SECONDS)

    async def _follow(self) -> None:
        """Begin to follow the logs, if nobody watched until now."""
        if self._place is None:
            self.version += 1  # nobody knows what changed meanwhile
            self._place = await self._log.place()
        if self._following is None:
            self._following = asyncio.create_task(Loop("live", self._step, idle_seconds=_SECONDS).run(), name="live")

    async def _step(self) -> float:
        if self._stopping.is_set():
            self._announce(b"")
            return _SECONDS
        if self._place is None:
            return _SECONDS
        changed, self._place = await self._log.after(self._place)
        if changed:
            self._announce(_frame(changed))
        return self._interval()

    def _announce(self, frame: bytes) -> None:
        self._frame = frame
        self._count += 1
        self.version += 1
        announced, self._next = self._next, asyncio.Event()
        announced.set()


def _frame(changed: Changed) -> bytes:
    data = {
        "jobs": None if changed.jobs is None else sorted(changed.jobs),
        "deliveries": changed.deliveries,
        "providers": changed.providers,
        "endpoints": changed.endpoints,
    }
    return f"event: change\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


_EVERYTHING = _frame(Changed(jobs=None, deliveries=True, providers=True, endpoints=True))
