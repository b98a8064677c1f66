"""
Events as they happen: server-sent events, resumed by position.

A single reader follows the log. It makes the text of what is new once, and hands it to the clients that wait, a few at
a time with a rest in between: acknowledgements go first, and what happens in a round is one write to each client in the
next. An event is late by a millisecond or two for each client: by half a second with 500, and not at all with a few.

A client is a position and nothing more. One that does not wait, since it is behind or does not read, is not handed
anything: it reads on by itself when it gets to it, from the last few hundred events that all clients share or from the
database. At most one batch per client is in memory, and a slow client waits in its own socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from receiver.domain.events import Event, EventFilter
from receiver.runtime.loops import Loop
from receiver.store.events import Events

HEARTBEAT_SECONDS = 15.0
_BATCH = 100
_SHARED = 500
_AT_ONCE = 4
"""Clients that are written to before the reader rests."""
_REST_SECONDS = 0.004
"""The rest; half of it, and half again, as long as full batches show that more is waiting."""
_ROUND_SECONDS_PER_CLIENT = 0.0005
"""The least time for each client from one reading of new events to the next, whether or not any client wants them."""
_HEARTBEAT = b": heartbeat\n\n"


@dataclass(eq=False, slots=True)
class _Client:
    """A client that has got everything up to *position*. While it waits, *handed* is what it is handed."""

    position: int
    choice: EventFilter
    waits_since: float = 0.0
    handed: asyncio.Future[bytes] = field(init=False)


class _Batch:
    """The events that follow the position *after*, as text: made once for all clients with the same filter."""

    def __init__(self, events: Sequence[Event], after: int) -> None:
        self.after = after
        self._frames = [(event, frame(event)) for event in events]
        self._texts: dict[EventFilter, bytes] = {}

    def text(self, choice: EventFilter) -> bytes:
        text = self._texts.get(choice)
        if text is None:
            text = b"".join(each for event, each in self._frames if choice.takes(event))
            self._texts[choice] = text
        return text


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
        self._clients = 0
        self._waiting: dict[_Client, None] = {}
        """Those that wait, the longest-waiting first."""
        self._handed = 0
        self._rest_seconds = _REST_SECONDS
        self.loop = Loop("stream", self.step, woken=woken, idle_seconds=0.5)

    @property
    def clients(self) -> int:
        return self._clients

    async def step(self) -> float:
        """Read new events, once for all clients, and hand them out. Without clients there is nothing to do."""
        if self._stopping.is_set():
            for client in list(self._waiting):
                self._wake(client, b"")
            return 3600.0
        if not self._clients:
            self._recent.clear()
            return 3600.0
        await self._hand_heartbeats()
        if not self._recent:
            self._head = max(await self._events.newest() - 1, 0)
        after, began = self._head, time.monotonic()
        found, self._head = await self._events.after(after, limit=_BATCH)
        if found:
            self._recent.extend(found)
            behind = len(found) == _BATCH
            self._rest_seconds = self._rest_seconds / 2 if behind else _REST_SECONDS
            await self._hand_out(_Batch(found, after))
            if behind:
                return 0.0
            with contextlib.suppress(TimeoutError):  # a stop does not wait for the rest
                rest = began + _ROUND_SECONDS_PER_CLIENT * self._clients - time.monotonic()
                await asyncio.wait_for(self._stopping.wait(), rest)
        return 3600.0

    async def start_position(self) -> int:
        """Return the position for a client that names none: it gets events from now on."""
        return await self._events.newest()

    async def frames(self, position: int, choice: EventFilter) -> AsyncGenerator[bytes, None]:
        """Yield the stream of one client, starting after *position*. Ends when the receiver stops."""
        client = _Client(position, choice)
        self._clients += 1
        self.loop.wake()
        try:
            yield b": events\nretry: 1000\n\n"
            while not self._stopping.is_set():
                found, client.position = await self._after(client.position, choice)
                if found:
                    yield b"".join(map(frame, found))
                elif client.position >= self._head and (text := await self._next(client)):
                    yield text
        finally:
            self._clients -= 1

    async def _after(self, position: int, choice: EventFilter) -> tuple[Sequence[Event], int]:
        """Return the next events: from memory where that reaches back far enough, else from the database."""
        recent = self._recent
        if recent and recent[0].position <= position + 1:
            start = bisect_right(recent, position, key=lambda event: event.position)
            newer = list(islice(recent, start, start + _BATCH))
            return [event for event in newer if choice.takes(event)], newer[-1].position if newer else position
        return await self._events.after(position, limit=_BATCH, choice=choice)

    # --- Those that wait ----------------------------------------------------------------------------------------------

    async def _next(self, client: _Client) -> bytes:
        """Wait for what the reader hands to *client*; nothing if it is to look for itself."""
        client.handed = asyncio.get_running_loop().create_future()
        client.waits_since = time.monotonic()
        self._waiting[client] = None
        try:
            return await client.handed
        finally:
            self._waiting.pop(client, None)

    async def _hand_out(self, batch: _Batch) -> None:
        """Hand *batch* to all clients that wait for any of its events."""
        for client in list(self._waiting):
            if client not in self._waiting or client.position >= self._head:
                continue
            text = b""
            if client.position == batch.after:
                client.position = self._head
                text = batch.text(client.choice)
                if not text:
                    continue
            self._wake(client, text)
            await self._rest()
            if self._stopping.is_set():
                return

    async def _hand_heartbeats(self) -> None:
        """Hand a heartbeat to the clients that have waited for so long."""
        due = time.monotonic() - self._heartbeat_seconds
        while self._waiting and (client := next(iter(self._waiting))).waits_since <= due:
            self._wake(client, _HEARTBEAT)
            await self._rest()
            if self._stopping.is_set():
                return

    def _wake(self, client: _Client, text: bytes) -> None:
        del self._waiting[client]
        if not client.handed.done():
            client.handed.set_result(text)

    async def _rest(self) -> None:
        """Rest after each few clients."""
        self._handed += 1
        if self._handed % _AT_ONCE == 0:
            await asyncio.sleep(self._rest_seconds)


def frame(event: Event) -> bytes:
    """
    Encode one event. `data` is exactly the text that subscribers are sent, and never has a line break.

    `webhook-id` is our own field, which standard clients ignore: the event's id, the same over every channel.
    """
    text = f"id: {event.position}\nevent: {event.type}\nwebhook-id: {event.id}\ndata: {event.body}\n\n"
    return text.encode()
