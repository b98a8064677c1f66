"""Providers: their pauses, whether their callbacks get lost, and statistics of their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from receiver.domain.events import NewEvent
from receiver.domain.ids import lowest_id
from receiver.domain.pauses import Pause
from receiver.store.codecs import moment, us
from receiver.store.database import Database
from receiver.store.outbox import write_events
from receiver.store.statements import FOR_UPDATE, Fetch, Run, RunMany, Work, alone, first

_RECENT = 500
"""The sample is taken from this many last finished jobs: a million that awaited no callback are not walked over."""


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """The end of a job. `called_back`: a callback arrived after a status call had settled it."""

    seconds: float
    awaited_callback: bool
    settled_by: str
    called_back: bool


@dataclass(frozen=True, slots=True)
class JobCost:
    """The cost of each of *count* jobs of one provider on one day (days since 1970, UTC)."""

    provider: str
    day: int
    unit: str
    amount: str
    count: int


class ProviderTable:
    """The statements about providers, one transaction each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- Pauses -----------------------------------------------------------------------------------------------------

    async def pauses(self) -> dict[str, Pause]:
        """The pauses in force, by provider."""
        return {row[0]: _pause(row) for row in await self._database.read(alone(Fetch(_PAUSES)))}

    async def pause(self, provider: str, pause: Pause, now: datetime) -> datetime | None:
        """Write *pause*. If one was in force, its start stays, and is returned; else `provider.paused` is emitted."""

        def work() -> Work[datetime | None]:
            yield Run(_KNOW, (provider,))
            ((since,),) = yield Fetch(_PAUSED_AT, (provider,), FOR_UPDATE)
            values = (pause.reason, us(pause.since), us(pause.probe_at), pause.probes, provider)
            yield Run(_PAUSE, values)
            if since is not None:
                return moment(since)
            yield from write_events([_event("provider.paused", provider, pause)], now)
            return None

        return await self._database.write(work)

    async def begin_probe(self, provider: str, pause: Pause, next_at: datetime) -> bool:
        """Claim the probe that *pause* waits for; the next is due at *next_at*. False: another process has it."""
        values = (us(next_at), provider, us(pause.since), us(pause.probe_at))
        return bool(await self._database.write(alone(Run(_BEGIN_PROBE, values))) == 1)

    async def resume(self, provider: str, now: datetime) -> bool:
        """End a pause and emit `provider.resumed`; False if there was none."""

        def work() -> Work[bool]:
            ended = bool((yield Run(_RESUME, (provider,))) == 1)
            if ended:
                yield from write_events([_event("provider.resumed", provider, None)], now)
            return ended

        return await self._database.write(work)

    # --- Keys -------------------------------------------------------------------------------------------------------

    async def note_keys(self, providers: Sequence[str], now: datetime) -> None:
        """Record that a process that submits has a key for each of *providers*."""

        def work() -> Work[None]:
            yield RunMany(_NOTE_KEY, [(provider, us(now)) for provider in providers])

        if providers:
            await self._database.write(work)

    async def with_keys(self, since: datetime) -> set[str]:
        """Return the providers for which any process had a key after *since*."""
        return {row[0] for row in await self._database.read(alone(Fetch(_WITH_KEYS, (us(since),))))}

    # --- Statistics -------------------------------------------------------------------------------------------------

    async def degraded(self) -> set[str]:
        """Return the providers whose callbacks get lost."""
        return {row[0] for row in await self._database.read(alone(Fetch(_DEGRADED)))}

    async def set_degraded(self, provider: str, data: dict[str, Any] | None, now: datetime) -> bool:
        """Record that callbacks get lost, with *data* for the event, or arrive again (None). False if that is known."""
        worse = data is not None

        def work() -> Work[bool]:
            changed = yield Run(_SET_DEGRADED, (provider, us(now) if worse else None, worse))
            # Another process may have seen the same, and written the event.
            if changed == 1 and data is not None:
                yield from write_events([NewEvent("provider.callbacks_degraded", data, provider=provider)], now)
            return bool(changed == 1)

        return await self._database.write(work)

    async def last_finished(self, provider: str, *, limit: int, awaited: bool = False) -> list[FinishedJob]:
        """Return the last finished jobs of *provider*; with *awaited*, only those whose callback was awaited."""
        query = _FINISHED.format(" AND awaits_callback = 1 AND settled_by <> 'response'" if awaited else "")
        rows = await self._database.read(alone(Fetch(query, (provider, limit))))
        return [FinishedJob(us_ / 1_000_000, bool(waited), by, bool(later)) for us_, waited, by, later in rows]

    async def costs(self, since: datetime) -> list[JobCost]:
        """Return the costs of jobs made after *since*, by provider, day, unit and amount."""
        rows = await self._database.read(alone(Fetch(_COSTS, (lowest_id("job", since),))))
        return [JobCost(*row) for row in rows]


def pause_of(provider: str) -> Work[Pause | None]:
    """Return the pause of *provider* that is in force."""
    row = yield from first(f"{_PAUSES} AND name = ?", provider)
    return None if row is None else _pause(row)


def _pause(row: Sequence[Any]) -> Pause:
    _, reason, since, probe_at, probes = row
    return Pause(reason or "", moment(since), moment(probe_at), probes)


def _event(kind: str, provider: str, pause: Pause | None) -> NewEvent:
    return NewEvent(kind, {"name": provider, "paused": None if pause is None else pause.to_json()}, provider=provider)


_PAUSES = "SELECT name, paused_reason, paused_at, probe_at, probes FROM providers WHERE paused_at IS NOT NULL"
_KNOW = "INSERT INTO providers (name, probes) VALUES (?, 0) ON CONFLICT (name) DO NOTHING"
_PAUSED_AT = "SELECT paused_at FROM providers WHERE name = ?"
_PAUSE = (
    "UPDATE providers SET paused_reason = ?, paused_at = coalesce(paused_at, ?), probe_at = ?, probes = ?"
    " WHERE name = ?"
)
_BEGIN_PROBE = "UPDATE providers SET probe_at = ? WHERE name = ? AND paused_at = ? AND probe_at = ?"
_RESUME = (
    "UPDATE providers SET paused_reason = NULL, paused_at = NULL, probe_at = NULL, probes = 0"
    " WHERE name = ? AND paused_at IS NOT NULL"
)
_NOTE_KEY = (
    "INSERT INTO providers (name, key_at, probes) VALUES (?, ?, 0)"
    " ON CONFLICT (name) DO UPDATE SET key_at = excluded.key_at"
)
_WITH_KEYS = "SELECT name FROM providers WHERE key_at > ?"
_DEGRADED = "SELECT name FROM providers WHERE degraded_at IS NOT NULL"
_SET_DEGRADED = (
    "INSERT INTO providers (name, degraded_at, probes) VALUES (?, ?, 0)"
    " ON CONFLICT (name) DO UPDATE SET degraded_at = excluded.degraded_at WHERE (providers.degraded_at IS NULL) = ?"
)
_FINISHED = (
    "SELECT finished_at - sent_at, awaits_callback, settled_by,"
    " CASE WHEN settled_by = 'poll' AND awaits_callback = 1 THEN EXISTS (SELECT 1 FROM evidence"
    " WHERE job_id = recent.id AND source = 'callback' AND verdict <> 'refused' AND received_at >= finished_at)"
    " ELSE 1 = 0 END"
    " FROM (SELECT id, sent_at, finished_at, awaits_callback, settled_by FROM jobs"
    f" WHERE provider = ? AND finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT {_RECENT}) AS recent"
    " WHERE sent_at IS NOT NULL AND settled_by IS NOT NULL{} ORDER BY finished_at DESC LIMIT ?"
)
_COSTS = (
    f"SELECT provider, created_at / {86_400_000_000} AS day, cost_unit, cost_amount, count(*) FROM jobs"
    " WHERE id >= ? AND cost_amount IS NOT NULL GROUP BY provider, day, cost_unit, cost_amount"
)
