"""
Lanes: what a process holds for each receiver of deliveries, first and later tries apart.

Later tries get one start in four, and never all slots.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from receiver.domain.deliveries import Delivery
from receiver.domain.endpoints import Endpoint
from receiver.net.client import Outbound
from receiver.runtime.loops import TaskPool
from receiver.runtime.token_bucket import Bucket

_LATER_ONE_IN = 4


@dataclass(slots=True)
class Lane:
    """The deliveries that this process holds for one lane, and the lane's limits. Each slot has its own client."""

    name: str
    pool: TaskPool
    bucket: Bucket
    endpoint: Endpoint | None
    clients: list[Outbound] = field(default_factory=list)
    first: deque[Delivery] = field(default_factory=deque)
    later: deque[Delivery] = field(default_factory=deque)
    later_busy: int = 0
    starts: int = 0
    used_at: float = 0.0

    @property
    def idle(self) -> bool:
        return not (self.first or self.later or self.pool.busy)

    def room(self, *, retry: bool) -> int:
        """Return how many more deliveries to claim: none while half of the most that may wait here still wait."""
        most = max(4 * self.pool.size, 64)
        held = len(self.later if retry else self.first)
        return most - held if held <= most // 2 else 0

    def next(self) -> Delivery | None:
        """Return the delivery to start now, if there is one and a free slot."""
        if not self.pool.free:
            return None
        later = bool(self.later) and self.later_busy < max(self.pool.size - self.pool.size // _LATER_ONE_IN, 1)
        if self.first and later:
            later = self.starts % _LATER_ONE_IN == 0
        if later:
            return self.later.popleft()
        return self.first.popleft() if self.first else None

    def held(self) -> list[str]:
        """Return the ids of all its deliveries that this process holds, in progress or waiting."""
        return [*self.pool.names(), *self.waiting()]

    def waiting(self) -> list[str]:
        return [delivery.id for delivery in (*self.first, *self.later)]

    def drop(self) -> None:
        self.first.clear()
        self.later.clear()

    async def close(self) -> None:
        """Close the connections of the free slots."""
        clients, self.clients = self.clients, []
        await asyncio.gather(*(client.aclose() for client in clients))
