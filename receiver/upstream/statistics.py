"""
Statistics of past jobs: turnaround, lost callbacks and cost, for each provider.

A callback is lost when its job was settled by a poll and none arrived afterwards either: a poll that was merely faster
is not a loss, or a provider that is polled early would never recover. A provider that loses half of its last callbacks
is degraded: `provider.callbacks_degraded` is emitted, and its jobs are polled early until callbacks arrive again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

from receiver.store.database import Database
from receiver.store.providers import FinishedJob, ProviderTable

_SAMPLE = 20
_FEWEST = 4
_DEGRADED = 0.5
_RECOVERED = 0.25
_SPEND_SECONDS = 30.0

Spend = dict[str, list[dict[str, str]]]


@dataclass(frozen=True, slots=True)
class CallbackHealth:
    """For the last finished jobs: how long they took (seconds) and the share of awaited callbacks that was lost."""

    jobs: int
    turnaround_seconds: float | None
    lost_callbacks: float | None
    degraded: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "jobs": self.jobs,
            "turnaround_seconds": self.turnaround_seconds,
            "lost_callbacks": self.lost_callbacks,
            "degraded": self.degraded,
        }


class ProviderStatistics:
    """Reads the sums. The table `providers` holds which are degraded; `degraded` is that set as last read."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._table = ProviderTable(database)
        self._clock = clock
        self._spend: dict[int, tuple[float, datetime, Spend]] = {}
        self.degraded: set[str] = set()

    async def load(self) -> None:
        self.degraded = await self._table.degraded()

    async def health(self, provider: str) -> CallbackHealth:
        found = await self._table.last_finished(provider, limit=_SAMPLE)
        awaited = [job for job in found if job.awaited_callback and job.settled_by in ("callback", "poll")]
        seconds = [job.seconds for job in found]
        return CallbackHealth(
            len(found),
            round(median(seconds), 3) if seconds else None,
            _lost(awaited) if awaited else None,
            provider in self.degraded,
        )

    async def judge(self, provider: str, now: datetime) -> bool:
        """Notice a provider whose callbacks stopped or came back. True if they stopped and an event says so."""
        last = await self._table.last_finished(provider, limit=_SAMPLE, awaited=True)
        if len(last) < _FEWEST:
            return False
        lost = _lost(last)
        worse = provider not in self.degraded and lost >= _DEGRADED
        better = provider in self.degraded and lost <= _RECOVERED
        if not worse and not better:
            return False
        data = {"name": provider, "lost_callbacks": lost, "jobs": len(last)} if worse else None
        emitted = await self._table.set_degraded(provider, data, now) and worse
        (self.degraded.add if worse else self.degraded.discard)(provider)
        return emitted

    async def spend(self, *, now: datetime, days: int = 7) -> Spend:
        """
        Return the cost of the jobs of the last *days*, by provider, day (UTC, of creation) and unit, newest day first.

        At most half a minute old: the sum is over many jobs, and requested by pages and scrapers.
        """
        since = (now - timedelta(days=days - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
        known = self._spend.get(days)
        if known is not None and known[1] == since and self._clock() - known[0] < _SPEND_SECONDS:
            return known[2]
        sums: dict[tuple[str, int, str], Decimal] = {}
        for cost in await self._table.costs(since):
            key = cost.provider, cost.day, cost.unit
            sums[key] = sums.get(key, Decimal(0)) + Decimal(cost.amount) * cost.count
        spend: Spend = {}
        for (provider, day, unit), total in sorted(sums.items(), key=lambda item: item[0][1], reverse=True):
            date = (datetime(1970, 1, 1, tzinfo=now.tzinfo) + timedelta(days=day)).date().isoformat()
            spend.setdefault(provider, []).append({"day": date, "amount": format(total, "f"), "unit": unit})
        self._spend[days] = (self._clock(), since, spend)
        return spend


def _lost(jobs: list[FinishedJob]) -> float:
    """Return the share of jobs that were settled by a poll and got no callback afterwards."""
    lost = [job for job in jobs if job.settled_by == "poll" and not job.called_back]
    return len(lost) / len(jobs)
