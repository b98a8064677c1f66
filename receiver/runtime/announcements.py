"""
Signals between processes: an event that is set in one process is soon set in all.

Setting an event does not wait: announcements in quick succession are sent once. An announcement may be lost; every loop
also wakes by itself, and finds its work in the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import fields

from receiver.runtime.loops import Loop
from receiver.runtime.wakes import Wakes

_GATHER_SECONDS = 0.05


class SharedEvent(asyncio.Event):
    """An event that is set here and announced to the other processes; `receive` sets it here alone."""

    def __init__(self, announce: Callable[[], None]) -> None:
        super().__init__()
        self._announce = announce

    def set(self) -> None:
        super().set()
        self._announce()

    def receive(self) -> None:
        super().set()


class Announcements:
    """Sends the names of events through *notify*, and receives those of other processes through *listen*."""

    def __init__(
        self, notify: Callable[[str], Awaitable[None]], listen: Callable[[str, Callable[[], None]], None]
    ) -> None:
        self._notify = notify
        self._listen = listen
        self._due: set[str] = set()
        self.loop = Loop("announcements", self.step)

    def event(self, name: str) -> SharedEvent:
        """Return an event that all processes share under *name*."""
        event = SharedEvent(lambda: self._announce(name))
        self._listen(name, event.receive)
        return event

    def wakes(self) -> Wakes:
        """Return signals to the loops of all processes."""
        return Wakes(**{each.name: self.event(each.name) for each in fields(Wakes)})

    async def step(self) -> float:
        """Send the announcements that are due."""
        due, self._due = sorted(self._due), set()
        for name in due:
            await self._notify(name)
        if due:
            await asyncio.sleep(_GATHER_SECONDS)
        return 0.0 if self._due else 3600.0

    def _announce(self, name: str) -> None:
        self._due.add(name)
        self.loop.wake()
