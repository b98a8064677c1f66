"""
Providers that refuse our key or our credit are paused: their jobs wait in the queue instead of failing one by one.

One probe job with a growing delay, or an operator, resumes a provider. What counts is when a call was sent: calls that
were under way when the pause began can neither lengthen nor end it. The table `providers` holds the pauses, so that
they outlive a restart and hold for every process on the same database; each has one event.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from receiver.domain.entity import iso
from receiver.domain.pauses import FIRST_PROBE, NEVER, Pause
from receiver.store.database import Database
from receiver.store.providers import ProviderTable

log = structlog.get_logger("receiver.pauses")

_FRESH = timedelta(seconds=1)


class Pauses:
    """The paused providers, and the jobs that probe them."""

    def __init__(self, database: Database) -> None:
        self._table = ProviderTable(database)
        self._lock = asyncio.Lock()
        self._paused: dict[str, Pause] = {}
        self._probing: dict[str, str] = {}
        self._loaded_at: datetime | None = None

    async def load(self) -> None:
        """Read the table."""
        async with self._lock:
            self._paused = await self._table.pauses()

    async def refresh(self, now: datetime) -> None:
        """Read changes by other processes, once a second."""
        if self._loaded_at is None or not _FRESH > now - self._loaded_at >= timedelta(0):
            self._loaded_at = now
            await self.load()

    def of(self, provider: str) -> Pause | None:
        return self._paused.get(provider)

    def may_probe(self, provider: str, now: datetime) -> bool:
        """Return whether a job of a paused provider may be sent as a probe."""
        pause = self._paused.get(provider)
        return pause is not None and provider not in self._probing and now >= pause.probe_at

    async def begin_probe(self, provider: str, job_id: str, now: datetime) -> bool:
        """
        Return whether *job_id* may be sent: as the probe of a pause, until `probe_ended`, or because the pause ended.

        Only one of several processes gets the probe. Whatever its result, the next one waits its delay.
        """
        async with self._lock:
            pause = self._paused.get(provider)
            if pause is None:
                return True  # it was resumed while the job was being claimed
            begun = replace(pause, probe_at=now + pause.delay)
            if now < pause.probe_at or not await self._table.begin_probe(provider, pause, begun.probe_at):
                self._loaded_at = None
                return False
            self._paused[provider] = begun
            self._probing[provider] = job_id
            return True

    def probe_ended(self, provider: str, job_id: str) -> None:
        if self._probing.get(provider) == job_id:
            del self._probing[provider]

    async def answered(self, provider: str, now: datetime, *, sent_at: datetime) -> bool:
        """Record that the provider accepted our key for a call sent at *sent_at*. True if that ended a pause."""
        pause = self._paused.get(provider)
        if pause is None or pause.by_operator or sent_at <= pause.since:
            return False
        return await self.resume(provider, now)

    async def pause(self, provider: str, now: datetime, *, reason: str) -> None:
        """Pause a provider for an operator: no job probes it, and only an operator resumes it."""
        async with self._lock:
            pause = Pause(reason[:300], now, NEVER, 0)
            since = await self._table.pause(provider, pause, now)
            self._paused[provider] = pause if since is None else replace(pause, since=since)
        log.info("provider_paused", provider=provider, by="operator")

    async def refused(self, provider: str, now: datetime, *, sent_at: datetime, reason: str) -> bool:
        """Record that the provider refused our key for a call sent at *sent_at*. True if that began a pause."""
        async with self._lock:
            before = self._paused.get(provider)
            if before is not None and (before.by_operator or sent_at <= before.since):
                return False
            if before is None:
                pause = Pause(reason[:300], now, now + FIRST_PROBE, 0)
            else:
                pause = replace(before, reason=reason[:300], probes=before.probes + 1)
                pause = replace(pause, probe_at=now + pause.delay)
            self._paused[provider] = pause
            since = await self._table.pause(provider, pause, now)
            if since is not None:
                self._paused[provider] = replace(pause, since=since)
        log.warning("provider_paused", provider=provider, reason=pause.reason, probe_at=iso(pause.probe_at))
        return since is None

    async def resume(self, provider: str, now: datetime) -> bool:
        """End a pause; False if there was none."""
        async with self._lock:
            self._paused.pop(provider, None)
            ended = await self._table.resume(provider, now)
        if ended:
            log.info("provider_resumed", provider=provider)
        return ended
