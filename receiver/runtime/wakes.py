"""
Signals between loops: who gives work to a loop sets its event, and its wait ends.

They exist before the loops do, so that parts can be built in the order in which they depend on each other. A signal
carries nothing and may be lost with the process: every loop also wakes by itself, and finds its work in the database.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Wakes:
    """One event for each loop that others give work to."""

    reader: asyncio.Event = field(default_factory=asyncio.Event)
    submissions: asyncio.Event = field(default_factory=asyncio.Event)
    poller: asyncio.Event = field(default_factory=asyncio.Event)
    archive: asyncio.Event = field(default_factory=asyncio.Event)
    notifier: asyncio.Event = field(default_factory=asyncio.Event)
    stream: asyncio.Event = field(default_factory=asyncio.Event)

    def events_written(self) -> None:
        """Deliver new events, and show them to the clients of the stream."""
        self.notifier.set()
        self.stream.set()

    def jobs_queued(self) -> None:
        """Submit what is queued; being queued is an event too."""
        self.submissions.set()
        self.events_written()
