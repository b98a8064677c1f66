"""
The loop that sums each hour, for the dashboard and `GET /v1/stats`.

The current hour is summed again every few seconds, and for ten minutes after its end, for late changes. Summing
takes a bounded share of the time, however much there is to sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from receiver.domain.rollups import HOUR, Sums, hour_of
from receiver.runtime.loops import Loop
from receiver.store.database import Database
from receiver.store.rollups import RollupTable

_FARTHEST_BACK = timedelta(days=30)
_STAYS_OPEN = timedelta(minutes=10)
_PAUSE_SECONDS = 5.0
_REST = 50
"""The length of a pause, as a multiple of the summing before it."""


class Rollups:
    """Sums the hours from the last known one, or the first job, until now."""

    def __init__(
        self, database: Database, providers: Sequence[str], *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._table = RollupTable(database)
        self._providers = tuple(providers)
        self._clock = clock
        self._next: datetime | None = None
        self._written: dict[datetime, dict[str, Sums]] = {}
        self._rests_until = 0.0
        self.loop = Loop("rollups", self._step, idle_seconds=_PAUSE_SECONDS)

    async def _step(self) -> float:
        if time.monotonic() >= self._rests_until:
            self._rests_until = time.monotonic() + await self.sum_next()
        return self._rests_until - time.monotonic()

    async def sum_next(self) -> float:
        """Sum one hour; returns the seconds to rest."""
        began, now = time.monotonic(), self._clock()
        current = hour_of(now)
        hour = self._next or await self._start(now)
        sums = await self._table.summed(hour, self._providers)
        if self._written.get(hour) != sums:
            await self._table.write(hour, sums)
            self._written = {hour: sums}
        closed = now >= hour + HOUR + _STAYS_OPEN
        self._next = hour + HOUR if closed else current if hour < current else self._open(current, now)
        took = time.monotonic() - began
        return min(took, 1.0) if closed else min(max(_PAUSE_SECONDS, _REST * took), 600.0)

    def _open(self, current: datetime, now: datetime) -> datetime:
        """Return the next hour to sum after *current*: the hour before the present one stays open for some minutes."""
        return current - HOUR if now < current + _STAYS_OPEN else current

    async def _start(self, now: datetime) -> datetime:
        newest = await self._table.newest()
        if newest is not None:
            return max(min(newest, hour_of(now)), hour_of(now - _FARTHEST_BACK))
        oldest = await self._table.oldest_job()
        return hour_of(now if oldest is None else max(oldest, now - _FARTHEST_BACK))
