"""
Events as they happen: server-sent events, resumed by position.

A client is a position and nothing more. Events that it has not seen are read from the database, or from the last few
hundred events that all clients share, and at most one batch per client is in memory: a slow client waits in its own
socket and falls behind. A single reader follows the log and wakes all clients at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from receiver.domain.events import Event, EventFilter
from receiver.runtime.loops import Loop
from receiver.store.events import Events

HEARTBEAT_SECONDS = 15.0
_BATCH = 100
_SHARED = 500


class Stream:
    """Follows the log for any number of clients. Set *woken* when events were written; *stopping* ends every client."""

    def __init__(
        self,
        events: Events,
        stopping: asyncio.Event,
        *,
        woken: asyncio.Event | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._events = events
        self._stopping = stopping
        self._heartbeat_seconds = heartbeat_seconds
        self._recent: deque[Event] = deque(maxlen=_SHARED)
        self._head = 0
        self._written = asyncio.Event()
        self._clients = 0
        self.loop = Loop("stream", self.step, woken=woken, idle_seconds=0.5)

    @property
    def clients(self) -> int:
        return self._clients

    async def step(self) -> float:
        """Read new events, once for all clients. Without clients there is nothing to do."""
        if self._stopping.is_set():
            self._announce()
            return 3600.0
        if not self._clients:
            self._recent.clear()
            return 3600.0
        if not self._recent:
            self._head = max(await self._events.newest() - 1, 0)
        found, self._head = await self._events.after(self._head, limit=_BATCH)
        if found:
            self._recent.extend(found)
            self._announce()
        return 0.0 if len(found) == _BATCH else 3600.0

    async def start_position(self) -> int:
        """Return the position for a client that names none: it gets events from now on."""
        return await self._events.newest()

    async def frames(self, position: int, choice: EventFilter) -> AsyncGenerator[bytes, None]:
        """Yield the stream of one client, starting after *position*. Ends when the receiver stops."""
        self._clients += 1
        self.loop.wake()
        try:
            yield b": events\nretry: 1000\n\n"
            while not self._stopping.is_set():
                written = self._written
                found, position = await self._after(position, choice)
                if found:
                    yield b"".join(frame(event) for event in found)
                    continue
                if self._head > position:
                    continue
                try:
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await written.wait()
                except TimeoutError:
                    yield b": heartbeat\n\n"
        finally:
            self._clients -= 1

    async def _after(self, position: int, choice: EventFilter) -> tuple[Sequence[Event], int]:
        """Return the next events: from memory where that reaches back far enough, else from the database."""
        recent = self._recent
        if recent and recent[0].position <= position + 1:
            newer = [event for event in recent if event.position > position][:_BATCH]
            return [event for event in newer if choice.takes(event)], newer[-1].position if newer else position
        return await self._events.after(position, limit=_BATCH, choice=choice)

    def _announce(self) -> None:
        written, self._written = self._written, asyncio.Event()
        written.set()


def frame(event: Event) -> bytes:
    """
    Encode one event. `data` is exactly the text that subscribers are sent, and never has a line break.

    `webhook-id` is our own field, which standard clients ignore: the event's id, the same over every channel.
    """
    text = f"id: {event.position}\nevent: {event.type}\nwebhook-id: {event.id}\ndata: {event.body}\n\n"
    return text.encode()
