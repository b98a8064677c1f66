"""
Signals between loops: a part that has work for a loop sets the loop's event, which ends its wait.

They exist before the loops, so that parts can be built in the order of their dependencies. A signal
carries nothing and may be lost with the process: every loop also wakes by itself, and finds its work in the database.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Wakes:
    """An event for each loop that gets work from others."""

    reader: asyncio.Event = field(default_factory=asyncio.Event)
    submissions: asyncio.Event = field(default_factory=asyncio.Event)
    poller: asyncio.Event = field(default_factory=asyncio.Event)
    archive: asyncio.Event = field(default_factory=asyncio.Event)
    notifier: asyncio.Event = field(default_factory=asyncio.Event)
    stream: asyncio.Event = field(default_factory=asyncio.Event)

    def events_written(self) -> None:
        """Wake the loops that deliver new events and stream them to clients."""
        self.notifier.set()
        self.stream.set()

    def jobs_queued(self) -> None:
        """Wake the submitting loop, and those for events, since being queued is an event too."""
        self.submissions.set()
        self.events_written()
