"""
What the jobs so far say: turnaround, lost callbacks and cost, for each provider.

A callback is lost when its job was settled by a poll and none came afterwards either: a poll that was merely faster is
no loss, or a provider that is polled early would never be well again. A provider that loses half of its last
callbacks is degraded: `provider.callbacks_degraded` tells, and its jobs are polled early until callbacks come again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

from receiver.domain.ids import lowest_id
from receiver.store.database import Database
from receiver.store.outbox import NewEvent, write_events
from receiver.store.rows import us

_SAMPLE = 20
_RECENT = 500
"""Among so many last finished jobs the sample is sought: a million that awaited no callback are not walked over."""
_FEWEST = 4
_DEGRADED = 0.5
_RECOVERED = 0.25
_SPEND_SECONDS = 30.0
_DAY_US = 86_400_000_000

_LAST = (
    "SELECT finished_at - sent_at, awaits_callback, settled_by, CASE WHEN settled_by = 'poll' AND awaits_callback = 1"
    " THEN EXISTS (SELECT 1 FROM evidence WHERE job_id = recent.id AND source = 'callback' AND verdict <> 'refused'"
    " AND received_at >= finished_at) ELSE 0 END"
    " FROM (SELECT id, sent_at, finished_at, awaits_callback, settled_by FROM jobs"
    f" WHERE provider = ? AND finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT {_RECENT}) AS recent"
    " WHERE sent_at IS NOT NULL AND settled_by IS NOT NULL{} ORDER BY finished_at DESC LIMIT ?"
)

Spend = dict[str, list[dict[str, str]]]


@dataclass(frozen=True, slots=True)
class CallbackHealth:
    """Of the last finished jobs: how long they took (seconds) and which share of awaited callbacks was lost."""

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
    """Reads the sums. Who is degraded is kept in the table `providers`; `degraded` is that as last read."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._spend: dict[int, tuple[float, datetime, Spend]] = {}
        self.degraded: set[str] = set()

    async def load(self) -> None:
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql("SELECT name FROM providers WHERE degraded_at IS NOT NULL")
            self.degraded = {row[0] for row in rows}

    async def health(self, provider: str) -> CallbackHealth:
        found = await self._last(_LAST.format(""), provider)
        awaited = [row for row in found if row[1] and row[2] in ("callback", "poll")]
        seconds = [row[0] / 1_000_000 for row in found]
        return CallbackHealth(
            len(found),
            round(median(seconds), 3) if seconds else None,
            _lost(awaited) if awaited else None,
            provider in self.degraded,
        )

    async def judge(self, provider: str, now: datetime) -> bool:
        """Notice a provider whose callbacks stopped or came back. True if its callbacks stopped and that was told."""
        last = await self._last(_LAST.format(" AND awaits_callback = 1 AND settled_by <> 'response'"), provider)
        if len(last) < _FEWEST:
            return False
        lost = _lost(last)
        worse = provider not in self.degraded and lost >= _DEGRADED
        better = provider in self.degraded and lost <= _RECOVERED
        if not worse and not better:
            return False
        async with self._database.write_raw() as db:
            cursor = await db.execute(
                "INSERT INTO providers (name, degraded_at, probes) VALUES (?, ?, 0)"
                " ON CONFLICT (name) DO UPDATE SET degraded_at = excluded.degraded_at"
                " WHERE (providers.degraded_at IS NULL) = ?",
                (provider, us(now) if worse else None, int(worse)),
            )
            # Another process may have seen the same, and told.
            emitted = worse and cursor.rowcount == 1
            if emitted:
                data = {"name": provider, "lost_callbacks": lost, "jobs": len(last)}
                await write_events(db, [NewEvent("provider.callbacks_degraded", data, provider=provider)], now)
        (self.degraded.add if worse else self.degraded.discard)(provider)
        return emitted

    async def spend(self, *, now: datetime, days: int = 7) -> Spend:
        """
        What the jobs of the last *days* cost, by provider, day (UTC, when asked for) and unit, newest day first.

        As of half a minute ago: the sum is over many jobs, and asked for by pages and scrapers.
        """
        since = (now - timedelta(days=days - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
        known = self._spend.get(days)
        if known is not None and known[1] == since and self._clock() - known[0] < _SPEND_SECONDS:
            return known[2]
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                f"SELECT provider, created_at / {_DAY_US} AS day, cost_unit, cost_amount, count(*) FROM jobs"
                " WHERE id >= ? AND cost_amount IS NOT NULL GROUP BY provider, day, cost_unit, cost_amount",
                (lowest_id("job", since),),
            )
            priced: list[Any] = list(rows)
        sums: dict[tuple[str, int, str], Decimal] = {}
        for provider, day, unit, amount, count in priced:
            sums[provider, day, unit] = sums.get((provider, day, unit), Decimal(0)) + Decimal(amount) * count
        spend: Spend = {}
        for (provider, day, unit), total in sorted(sums.items(), key=lambda one: one[0][1], reverse=True):
            date = (datetime(1970, 1, 1, tzinfo=now.tzinfo) + timedelta(days=day)).date().isoformat()
            spend.setdefault(provider, []).append({"day": date, "amount": format(total, "f"), "unit": unit})
        self._spend[days] = (self._clock(), since, spend)
        return spend

    async def _last(self, sentence: str, provider: str) -> list[Any]:
        async with self._database.read() as connection:
            return list(await connection.exec_driver_sql(sentence, (provider, _SAMPLE)))


def _lost(jobs: list[Any]) -> float:
    """The share of jobs that were settled by a poll and not called back about afterwards."""
    lost = [row for row in jobs if row[2] == "poll" and not row[3]]
    return len(lost) / len(jobs)
