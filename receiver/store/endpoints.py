"""
Endpoints in the database.

An endpoint that is disabled or removed has no pending deliveries: they end in the same transaction, listed and (for a
disabled one) replayable. Its health changes only in the transaction that books an attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from receiver.domain.endpoints import Endpoint, judged
from receiver.domain.events import NewEvent
from receiver.store.codecs import Codec, us
from receiver.store.database import Database
from receiver.store.statements import FOR_UPDATE, Fetch, Hold, Run, Work, first
from receiver.store.subscriptions import subscriptions_changed, subscriptions_revision


class Endpoints:
    """The statements about endpoints, one transaction each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Endpoint]:
        return await self._database.read(lambda: _fetch(_ALL))

    async def changed(self, revision: str | None) -> tuple[str, list[Endpoint]] | None:
        """Return all endpoints and their revision, unless it is still *revision*. Health does not count as a change."""

        def work() -> Work[tuple[str, list[Endpoint]] | None]:
            found = yield from subscriptions_revision()
            return None if found == revision else (found, (yield from _fetch(_ALL)))

        return await self._database.read(work)

    async def page(self, *, after: str = "", limit: int) -> list[Endpoint]:
        """Oldest first. *after* is an endpoint's id: the cursor."""
        return await self._database.read(lambda: _fetch(_PAGE, after, limit))

    async def get(self, endpoint_id: str) -> Endpoint | None:
        return await self._database.read(lambda: _read(endpoint_id))

    async def add(self, endpoint: Endpoint) -> None:
        def work() -> Work[None]:
            yield from _write(endpoint)
            yield from subscriptions_changed()

        await self._database.write(work)

    async def change(self, endpoint_id: str, change: Callable[[Endpoint], Endpoint], now: datetime) -> Endpoint | None:
        """Read, *change* and write in one transaction. None: there is no such endpoint."""

        def work() -> Work[Endpoint | None]:
            before = yield from _read(endpoint_id, lock=FOR_UPDATE)
            if before is None:
                return None
            after = change(before)
            yield from _write(after)
            yield from subscriptions_changed()
            if before.enabled and not after.enabled:
                yield Run(_GIVE_UP, (us(now), _disabled(after.disabled_reason or ""), endpoint_id))
            return after

        return await self._database.write(work)

    async def remove(self, endpoint_id: str, now: datetime) -> bool:
        """Remove it; what was pending for it is `dropped`. False: there is no such endpoint."""

        def work() -> Work[bool]:
            yield Hold("subscriptions")
            removed = yield Run("DELETE FROM endpoints WHERE id = ?", (endpoint_id,))
            yield Run(_DROP, (us(now), endpoint_id))
            yield from subscriptions_changed()
            return bool(removed == 1)

        return await self._database.write(work)


def note(endpoint_id: str, now: datetime, *, well: bool, given_up: bool, gone: bool) -> Work[list[NewEvent]]:
    """
    Judge an endpoint by the attempts being booked, inside the booking's transaction. Returns the events to write.

    See `domain.endpoints.judged`.
    """
    if well and not gone:
        yield Run(_WELL_AGAIN, (endpoint_id,))
    before = None if well and not (gone or given_up) else (yield from _read(endpoint_id, lock=FOR_UPDATE))
    if before is None or not before.enabled:
        return []
    after, new_events = judged(before, now, well=well, given_up=given_up, gone=gone)
    if not after.enabled:
        yield Run(_GIVE_UP, (us(now), _disabled(after.disabled_reason or ""), endpoint_id))
    if after != before:
        yield from _write(after)
    if not after.enabled:
        yield from subscriptions_changed()
    return list(new_events)


def _disabled(reason: str) -> str:
    return f"the endpoint was disabled: {reason}"


def _read(endpoint_id: str, *, lock: str = "") -> Work[Endpoint | None]:
    row = yield from first(_ONE, endpoint_id, lock=lock)
    return None if row is None else _CODEC.from_row(row)


def _fetch(query: str, *values: Any) -> Work[list[Endpoint]]:
    rows = yield Fetch(query, values)
    return [_CODEC.from_row(row) for row in rows]


_CODEC = Codec(Endpoint)
_COLUMNS = _CODEC.sql
_ALL = f"SELECT {_COLUMNS} FROM endpoints ORDER BY id"
_PAGE = f"SELECT {_COLUMNS} FROM endpoints WHERE id > ? ORDER BY id LIMIT ?"
_ONE = f"SELECT {_COLUMNS} FROM endpoints WHERE id = ?"
_WRITE = (
    f"INSERT INTO endpoints ({_COLUMNS}) VALUES ({', '.join('?' for _ in _CODEC.columns)})"
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _CODEC.columns if name not in ("id", "created_at"))
)
_WELL_AGAIN = (
    "UPDATE endpoints SET failing_since = NULL, failure_reported_at = NULL WHERE id = ? AND failing_since IS NOT NULL"
)
# Deliveries that wait for a disabled endpoint are listed as undelivered, and can be replayed once it is enabled.
_GIVE_UP = (
    "UPDATE deliveries SET state = 'given_up', next_at = NULL, finished_at = ?, fault = 'theirs',"
    " last_error = ?, lease_owner = NULL, lease_until = NULL WHERE endpoint_id = ? AND state = 'pending'"
)
_DROP = (
    "UPDATE deliveries SET state = 'dropped', next_at = NULL, finished_at = ?, fault = NULL,"
    " last_error = 'the endpoint was removed', lease_owner = NULL, lease_until = NULL"
    " WHERE endpoint_id = ? AND state = 'pending'"
)


def _write(endpoint: Endpoint) -> Work[None]:
    yield Hold("subscriptions")
    yield Run(_WRITE, _CODEC.to_row(endpoint))
