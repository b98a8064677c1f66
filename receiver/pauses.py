"""
Providers that refuse our key or our credit are paused: their jobs wait in the queue instead of failing one by one.

One probe job with a growing delay, or an operator, resumes a provider. Until a provider has answered once since this
process started or it was resumed, one submit call at a time is let through, so that a bad key costs one request and not
as many as there are slots; a first call that takes longer than a few seconds is not a refusal and holds nobody back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select

from receiver import tables
from receiver.database import Database
from receiver.jobs import iso
from receiver.outbox import Happening, tell
from receiver.rows import from_us, us

log = structlog.get_logger("receiver.pauses")

_FIRST_PROBE = timedelta(seconds=30)
_LAST_PROBE = timedelta(hours=1)
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Pause:
    reason: str
    since: datetime
    probe_at: datetime
    probes: int

    def to_json(self) -> dict[str, str | None]:
        return {"reason": self.reason, "since": iso(self.since)}


class Pauses:
    """Who is paused, kept in the table `providers`; and who has proved its key since we started."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._paused: dict[str, Pause] = {}
        self._proven: set[str] = set()
        self._first_left_at: dict[str, float] = {}

    async def load(self) -> None:
        table = tables.providers.c
        async with self._database.read() as connection:
            rows = await connection.execute(select(tables.providers).where(table.paused_at.is_not(None)))
            self._paused = {
                row["name"]: Pause(
                    row["paused_reason"] or "",
                    _some(from_us(row["paused_at"])),
                    _some(from_us(row["probe_at"])),
                    row["probes"],
                )
                for row in rows.mappings()
            }

    def of(self, provider: str) -> Pause | None:
        return self._paused.get(provider)

    def allowed(self, provider: str, now: datetime, *, in_flight: int) -> int | None:
        """How many more submit calls may leave now; None: as many as there are slots."""
        paused = self._paused.get(provider)
        if paused is not None:
            return 1 if now >= paused.probe_at and in_flight == 0 else 0
        if provider in self._proven:
            return None
        if in_flight == 0:
            return 1
        first = self._first_left_at.get(provider)
        return None if first is not None and time.monotonic() - first > _PATIENCE_SECONDS else 0

    def leaving(self, provider: str) -> None:
        """A submit call leaves."""
        self._first_left_at.setdefault(provider, time.monotonic())

    async def answered(self, provider: str, now: datetime) -> None:
        """The provider took our key."""
        self._proven.add(provider)
        if provider in self._paused:
            await self.resume(provider, now)

    async def pause(self, provider: str, *, reason: str, now: datetime) -> None:
        """Pause, or push a pause's next probe further away."""
        before = self._paused.get(provider)
        probes = 0 if before is None else before.probes + 1
        pause = Pause(
            reason[:300],
            now if before is None else before.since,
            now + min(_FIRST_PROBE * 2**probes, _LAST_PROBE),
            probes,
        )
        self._paused[provider] = pause
        self._forget_proof(provider)
        async with self._database.write_raw() as db:
            await db.execute(
                "INSERT INTO providers (name, paused_reason, paused_at, probe_at, probes) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET paused_reason = excluded.paused_reason,"
                " paused_at = excluded.paused_at, probe_at = excluded.probe_at, probes = excluded.probes",
                (provider, pause.reason, us(pause.since), us(pause.probe_at), probes),
            )
            if before is None:
                await tell(db, [_happening("provider.paused", provider, pause)], now)
        log.warning("provider_paused", provider=provider, reason=pause.reason, probe_at=iso(pause.probe_at))

    async def resume(self, provider: str, now: datetime) -> bool:
        """End a pause; False if there was none."""
        if self._paused.pop(provider, None) is None:
            return False
        async with self._database.write_raw() as db:
            await db.execute(
                "UPDATE providers SET paused_reason = NULL, paused_at = NULL, probe_at = NULL, probes = 0"
                " WHERE name = ?",
                (provider,),
            )
            await tell(db, [_happening("provider.resumed", provider, None)], now)
        log.info("provider_resumed", provider=provider)
        return True

    def _forget_proof(self, provider: str) -> None:
        self._proven.discard(provider)
        self._first_left_at.pop(provider, None)


def _happening(kind: str, provider: str, pause: Pause | None) -> Happening:
    return Happening(kind, {"name": provider, "paused": None if pause is None else pause.to_json()}, provider=provider)


def _some(value: datetime | None) -> datetime:
    assert value is not None
    return value
