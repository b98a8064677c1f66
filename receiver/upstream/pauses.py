"""
Providers that refuse our key or our credit are paused: their jobs wait in the queue instead of failing one by one.

One probe job with a growing delay, or an operator, resumes a provider. What counts is when a call was sent: calls that
were under way when the pause began can neither lengthen nor end it. The table `providers` holds the pauses, so that
they outlive a restart and hold for every process on the same database; each is told once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select

from receiver.domain.jobs import iso
from receiver.store import tables
from receiver.store.database import Database
from receiver.store.outbox import NewEvent, write_events
from receiver.store.rows import moment, us

log = structlog.get_logger("receiver.pauses")

_FIRST_PROBE = timedelta(seconds=30)
_LAST_PROBE = timedelta(hours=1)
_FRESH = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Pause:
    """`probes` were refused since it began."""

    reason: str
    since: datetime
    probe_at: datetime
    probes: int

    @property
    def delay(self) -> timedelta:
        doubled: int = 2 ** min(self.probes, 20)
        return min(_FIRST_PROBE * doubled, _LAST_PROBE)

    def to_json(self) -> dict[str, str | None]:
        return {"reason": self.reason, "since": iso(self.since)}


class Pauses:
    """Who is paused, and which job probes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = asyncio.Lock()
        self._paused: dict[str, Pause] = {}
        self._probing: dict[str, str] = {}
        self._loaded_at: datetime | None = None

    async def load(self) -> None:
        """Read the table. A probe that waits for its turn here keeps it."""
        async with self._lock:
            table = tables.providers.c
            async with self._database.read() as connection:
                rows = await connection.execute(select(tables.providers).where(table.paused_at.is_not(None)))
                found = {
                    row["name"]: Pause(
                        row["paused_reason"] or "",
                        moment(row["paused_at"]),
                        moment(row["probe_at"]),
                        row["probes"],
                    )
                    for row in rows.mappings()
                }
            known = self._paused
            self._paused = {
                name: known[name] if name in known and known[name].since == pause.since else pause
                for name, pause in found.items()
            }

    async def refresh(self, now: datetime) -> None:
        """Learn what other processes wrote, once a second."""
        if self._loaded_at is None or not _FRESH > now - self._loaded_at >= timedelta(0):
            self._loaded_at = now
            await self.load()

    def of(self, provider: str) -> Pause | None:
        return self._paused.get(provider)

    def may_probe(self, provider: str, now: datetime) -> bool:
        """Whether one job of a paused provider may leave, to find out."""
        pause = self._paused.get(provider)
        return pause is not None and provider not in self._probing and now >= pause.probe_at

    def probe_leaves(self, provider: str, job_id: str, now: datetime) -> None:
        """*job_id* is the probe until `probe_ended`; whatever comes of it, the next one waits its delay."""
        pause = self._paused.get(provider)
        if pause is None:
            return  # it was resumed while the job was being claimed
        self._paused[provider] = replace(pause, probe_at=now + pause.delay)
        self._probing[provider] = job_id

    def probe_ended(self, provider: str, job_id: str) -> None:
        if self._probing.get(provider) == job_id:
            del self._probing[provider]

    async def answered(self, provider: str, now: datetime, *, sent_at: datetime) -> bool:
        """The provider took our key for a call sent at *sent_at*. True if that ended a pause."""
        pause = self._paused.get(provider)
        return pause is not None and sent_at > pause.since and await self.resume(provider, now)

    async def refused(self, provider: str, now: datetime, *, sent_at: datetime, reason: str) -> bool:
        """The provider refused our key for a call sent at *sent_at*. True if that began a pause."""
        async with self._lock:
            before = self._paused.get(provider)
            if before is not None and sent_at <= before.since:
                return False
            if before is None:
                pause = Pause(reason[:300], now, now + _FIRST_PROBE, 0)
            else:
                pause = replace(before, reason=reason[:300], probes=before.probes + 1)
                pause = replace(pause, probe_at=now + pause.delay)
            self._paused[provider] = pause
            async with self._database.write_raw() as db:
                cursor = await db.execute("SELECT paused_at FROM providers WHERE name = ?", (provider,))
                row = await cursor.fetchone()
                await db.execute(
                    "INSERT INTO providers (name, paused_reason, paused_at, probe_at, probes) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET paused_reason = excluded.paused_reason,"
                    " paused_at = coalesce(providers.paused_at, excluded.paused_at), probe_at = excluded.probe_at,"
                    " probes = excluded.probes",
                    (provider, pause.reason, us(pause.since), us(pause.probe_at), pause.probes),
                )
                since = None if row is None else row[0]
                if since is None:
                    await write_events(db, [_new_event("provider.paused", provider, pause)], now)
                else:
                    self._paused[provider] = replace(pause, since=moment(since))
        log.warning("provider_paused", provider=provider, reason=pause.reason, probe_at=iso(pause.probe_at))
        return since is None

    async def resume(self, provider: str, now: datetime) -> bool:
        """End a pause; False if there was none."""
        async with self._lock:
            self._paused.pop(provider, None)
            async with self._database.write_raw() as db:
                cursor = await db.execute(
                    "UPDATE providers SET paused_reason = NULL, paused_at = NULL, probe_at = NULL, probes = 0"
                    " WHERE name = ? AND paused_at IS NOT NULL",
                    (provider,),
                )
                ended = cursor.rowcount == 1
                if ended:
                    await write_events(db, [_new_event("provider.resumed", provider, None)], now)
        if ended:
            log.info("provider_resumed", provider=provider)
        return ended


def _new_event(kind: str, provider: str, pause: Pause | None) -> NewEvent:
    return NewEvent(kind, {"name": provider, "paused": None if pause is None else pause.to_json()}, provider=provider)
