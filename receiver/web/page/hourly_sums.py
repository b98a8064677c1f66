"""Hourly sums as the overview reads them: hours that are over are read once, since they don't change any more."""

from __future__ import annotations

from datetime import datetime

from receiver.domain.rollups import HOUR, Sums, hour_of
from receiver.store.rollups import RollupTable

Hours = dict[datetime, dict[str, Sums]]
_OPEN = 2 * HOUR


class HourlySums:
    """Remembers closed hours once the loop that sums them has come past them."""

    def __init__(self, table: RollupTable) -> None:
        self._table = table
        self._closed: Hours = {}

    async def between(self, start: datetime, end: datetime, now: datetime) -> Hours:
        """Every hour from *start* until before *end*, oldest first, with the sums of each provider."""
        known = start
        while known in self._closed:
            known += HOUR
        fresh: Hours = {}
        for hour, provider, sums in await self._table.between(known, end):
            fresh.setdefault(hour, {})[provider] = sums
        open_from = hour_of(now) - _OPEN
        hours: Hours = {}
        caught_up = max(fresh, default=start) >= open_from
        while start < end:
            hours[start] = self._closed[start] if start < known else fresh.get(start, {})
            if caught_up and start < open_from:
                self._closed[start] = hours[start]
            start += HOUR
        return hours
