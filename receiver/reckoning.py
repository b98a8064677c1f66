"""
What the jobs so far say: turnaround, lost callbacks and cost, for each provider.

A callback is lost when a job that awaited one was settled by a look. A provider that loses half of its last callbacks
is degraded: `provider.callbacks_degraded` tells, and its jobs are looked at early until callbacks come again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

from receiver.database import Database
from receiver.ids import lowest_id
from receiver.outbox import Happening, tell
from receiver.rows import us

_SAMPLE = 20
_FEWEST = 4
_DEGRADED = 0.5
_RECOVERED = 0.25


@dataclass(frozen=True, slots=True)
class Health:
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


class Reckoning:
    """Reads the sums. `degraded` is kept in memory and in the table `providers`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.degraded: set[str] = set()

    async def load(self) -> None:
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql("SELECT name FROM providers WHERE degraded_at IS NOT NULL")
            self.degraded = {row[0] for row in rows}

    async def health(self, provider: str) -> Health:
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                "SELECT finished_at - sent_at, awaits_callback, settled_by FROM jobs WHERE provider = ?"
                " AND finished_at IS NOT NULL AND sent_at IS NOT NULL AND settled_by IS NOT NULL"
                " ORDER BY finished_at DESC LIMIT ?",
                (provider, _SAMPLE),
            )
            found: list[Any] = list(rows)
        awaited = [row[2] for row in found if row[1] and row[2] in ("callback", "poll")]
        lost = None if not awaited else awaited.count("poll") / len(awaited)
        seconds = [row[0] / 1_000_000 for row in found]
        return Health(len(found), round(median(seconds), 3) if seconds else None, lost, provider in self.degraded)

    async def judge(self, provider: str, now: datetime) -> bool:
        """Notice a provider whose callbacks stopped or came back. True if that was told."""
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                "SELECT settled_by FROM jobs WHERE provider = ? AND awaits_callback = 1 AND finished_at IS NOT NULL"
                " AND settled_by IN ('callback', 'poll') ORDER BY finished_at DESC LIMIT ?",
                (provider, _SAMPLE),
            )
            last = [row[0] for row in rows]
        if len(last) < _FEWEST:
            return False
        share = last.count("poll") / len(last)
        worse = provider not in self.degraded and share >= _DEGRADED
        better = provider in self.degraded and share <= _RECOVERED
        if not worse and not better:
            return False
        async with self._database.write_raw() as db:
            await db.execute(
                "INSERT INTO providers (name, degraded_at, probes) VALUES (?, ?, 0)"
                " ON CONFLICT (name) DO UPDATE SET degraded_at = excluded.degraded_at",
                (provider, us(now) if worse else None),
            )
            if worse:
                data = {"name": provider, "lost_callbacks": share, "jobs": len(last)}
                await tell(db, [Happening("provider.callbacks_degraded", data, provider=provider)], now)
        (self.degraded.add if worse else self.degraded.discard)(provider)
        return worse

    async def spend(self, *, now: datetime, days: int = 7) -> dict[str, list[dict[str, str]]]:
        """What the jobs of the last *days* cost, by provider, day (UTC, when asked for) and unit, newest day first."""
        since = (now - timedelta(days=days - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql(
                "SELECT provider, date(created_at / 1000000, 'unixepoch') AS day, cost_unit, cost_amount FROM jobs"
                " WHERE id >= ? AND cost_amount IS NOT NULL",
                (lowest_id("job", since),),
            )
            sums: dict[tuple[str, str, str], Decimal] = {}
            priced: list[Any] = list(rows)
            for provider, day, unit, amount in priced:
                sums[provider, day, unit] = sums.get((provider, day, unit), Decimal(0)) + Decimal(amount)
        spend: dict[str, list[dict[str, str]]] = {}
        for (provider, day, unit), amount in sorted(sums.items(), key=lambda one: one[0][1], reverse=True):
            spend.setdefault(provider, []).append({"day": day, "amount": format(amount, "f"), "unit": unit})
        return spend
