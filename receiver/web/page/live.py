"""
The stream of changes. It says *what* changed, never *to what*: pages then fetch the server's own fragment.

A single reader follows the logs for all pages, a little more than once a second, and only while there are any; with
many pages less often. A change is sent to the pages in turn, spread over the time until the next one: their fetches
then arrive one after the other, and callbacks are answered in between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
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
        self._pages: list[_Page] = []
        self._following: asyncio.Task[None] | None = None
        self.version = 0
        """Incremented whenever something may have changed."""

    @property
    def pages(self) -> int:
        return len(self._pages)

    async def frames(self, still: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes, None]:
        """Yield the stream of one page, as long as *still*, called every few seconds, returns True."""
        page = _Page()
        self._pages.append(page)
        try:
            await self._follow()
            yield b"retry: 2000\nevent: open\ndata: {}\n\n"
            while not self._stopping.is_set():
                try:
                    async with asyncio.timeout(_HEARTBEAT_SECONDS):
                        frame = await page.next()
                except TimeoutError:
                    if not await still():
                        return
                    frame = b": heartbeat\n\n"
                yield frame
        finally:
            self._pages.remove(page)
            if not self._pages and self._following is not None:
                self._following.cancel()
                self._following = self._place = None

    async def _follow(self) -> None:
        """Begin to follow the logs, if this is the first page to watch."""
        if self._place is None:
            self.version += 1  # changes in the meantime are unknown
            place = await self._log.place()
            self._place = self._place or place
        if self._following is None:
            self._following = asyncio.create_task(Loop("live", self._step, idle_seconds=_SECONDS).run(), name="live")

    async def _step(self) -> float:
        """Read the changes, and send them to one page after the other."""
        if self._place is None:
            return _SECONDS
        changed, self._place = await self._log.after(self._place)
        if changed:
            self.version += 1
            frame, pages = _frame(changed), list(self._pages)
            pause = min(_SECONDS + _SECONDS_PER_PAGE * len(pages), _MOST_SECONDS) / len(pages)
            for page in pages:
                page.send(frame)
                await self._rest(pause)
        else:
            await self._rest(_SECONDS)
        if self._stopping.is_set():
            for page in self._pages:
                page.send(b"")
            return _SECONDS
        return 0

    async def _rest(self, seconds: float) -> None:
        """Wait, but no longer than the receiver runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


class _Page:
    """A watching page, and the frame that it has not taken yet."""

    def __init__(self) -> None:
        self._frame: bytes | None = None
        self._sent = asyncio.Event()

    def send(self, frame: bytes) -> None:
        """Send *frame* to the page; if it has not taken the one before, tell it that everything changed."""
        self._frame = frame if self._frame is None else _EVERYTHING
        self._sent.set()

    async def next(self) -> bytes:
        await self._sent.wait()
        self._sent.clear()
        frame, self._frame = self._frame, None
        return frame or b""


def _frame(changed: Changed) -> bytes:
    data = {
        "jobs": None if changed.jobs is None else sorted(changed.jobs),
        "deliveries": changed.deliveries,
        "providers": changed.providers,
        "endpoints": changed.endpoints,
    }
    return f"event: change\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


_EVERYTHING = _frame(Changed(jobs=None, deliveries=True, providers=True, endpoints=True))
