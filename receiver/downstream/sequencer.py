"""
Positions for events that were committed without one: on PostgreSQL, where many processes write at once.

Positions follow the order of commits, not of writing: a reader that has seen position n has seen everything below it.
Every process runs a sequencer; whichever takes the lock numbers what all have committed.
"""

from __future__ import annotations

import asyncio

from receiver.runtime.loops import Loop
from receiver.store.database import Database
from receiver.store.statements import NumberEvents, alone

_BATCH = 1000
_TAKEN_SECONDS = 0.02
"""The wait while another process is numbering: events committed meanwhile may have escaped it."""


class Sequencer:
    """Numbers events when they were *written*, and sets *numbered* when they can be read by their positions."""

    def __init__(self, database: Database, *, written: asyncio.Event, numbered: asyncio.Event) -> None:
        self._database = database
        self._numbered = numbered
        self.loop = Loop("sequencer", self.step, woken=written, idle_seconds=0.5)

    async def step(self) -> float:
        """Number one batch of events."""
        numbered: int | None = await self._database.write(alone(NumberEvents(_BATCH)))
        if numbered is None:
            return _TAKEN_SECONDS
        if numbered:
            self._numbered.set()
        return 0.0 if numbered == _BATCH else 3600.0
