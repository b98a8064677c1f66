"""
Hourly sums for the overview: in columns of one hour or several.

Past hours do not change any more: they are read once, and their columns are added up once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from receiver.domain.rollups import HOUR, Sums, hour_of, total
from receiver.store.rollups import RollupTable

ByProvider = dict[str, Sums]
Column = tuple[datetime, ByProvider]
_OPEN = 2 * HOUR
_KEPT = timedelta(days=40)


class HourlySums:
    """Remembers hours and columns once the summing loop has passed them."""

    def __init__(self, table: RollupTable) -> None:
        self._table = table
        self._hours: dict[datetime, ByProvider] = {}
        self._columns: dict[tuple[datetime, int], ByProvider] = {}

    async def summed_until(self, now: datetime) -> datetime | None:
        """Return the end of the sums while past hours are still to be summed; else None."""
        newest = await self._table.newest()
        if newest is not None:
            until = newest + HOUR
        else:
            oldest = await self._table.oldest_job()
            until = hour_of(now if oldest is None else oldest)
        return until if until < hour_of(now) else None

    async def columns(self, length: timedelta, step: int, now: datetime) -> list[Column]:
        """
        Return the last *length* until the end of this hour, in columns of *step* hours, oldest first.

        Columns begin at whole multiples of *step* hours of a day (UTC); the first may reach further back, the last is
        incomplete.
        """
        end = hour_of(now) + HOUR
        start = end - length
        start -= (start.hour % step) * HOUR
        hours = await self._between(start, end, now)
        columns = []
        while start < end:
            column = self._columns.get((start, step))
            if column is None:
                parts = [hours[hour] for n in range(step) if (hour := start + n * HOUR) in hours]
                column = merged(parts)
                if all(start + n * HOUR in self._hours for n in range(step)):
                    self._columns[start, step] = column
            columns.append((start, column))
            start += step * HOUR
        return columns

    async def _between(self, start: datetime, end: datetime, now: datetime) -> dict[datetime, ByProvider]:
        """Return every hour from *start* until before *end*."""
        known = start
        while known in self._hours:
            known += HOUR
        fresh: dict[datetime, ByProvider] = {}
        for hour, provider, sums in await self._table.between(known, end):
            fresh.setdefault(hour, {})[provider] = sums
        # Hours are summed one after the other: all before the last existing one are complete.
        open_from = min(hour_of(now) - _OPEN, max(fresh, default=start))
        hours: dict[datetime, ByProvider] = {}
        while start < end:
            hours[start] = self._hours[start] if start < known else fresh.get(start, {})
            if start < open_from:
                self._hours[start] = hours[start]
            start += HOUR
        self._forget(now - _KEPT)
        return hours

    def _forget(self, before: datetime) -> None:
        for hour in [hour for hour in self._hours if hour < before]:
            del self._hours[hour]
        for key in [key for key in self._columns if key[0] < before]:
            del self._columns[key]


def merged(several: list[ByProvider]) -> ByProvider:
    """Add up the sums of several hours, by provider."""
    names = sorted({name for sums in several for name in sums})
    return {name: total(sums[name] for sums in several if name in sums) for name in names}
