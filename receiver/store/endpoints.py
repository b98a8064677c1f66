"""
Endpoints: subscribers' URLs, what they want to hear, how fast, and how they fare.

An endpoint that is disabled or removed has no pending deliveries: they end in the same transaction, listed and (for a
disabled one) replayable. Its health changes in the transaction that books an attempt, never beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.jobs import iso
from receiver.store.database import Database
from receiver.store.outbox import NewEvent
from receiver.store.rows import from_us, moment, to_us, us
from receiver.store.statements import FOR_UPDATE, Fetch, Hold, Run, Work, first

DISABLE_AFTER = timedelta(days=5)
"""An endpoint that has failed for so long, without one success, is disabled."""
_MOST_SECRETS = 8


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """A `whsec_…`; `until` is set on one that was rotated out and still signs for a while."""

    secret: str = field(repr=False)
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A subscriber's URL. Empty `event_types` or `providers`: all of them. `secrets`: newest first."""

    id: str
    url: str
    created_at: datetime
    secrets: tuple[SigningSecret, ...] = field(repr=False)
    event_types: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    description: str = ""
    enabled: bool = True
    timeout_seconds: float = 15.0
    concurrency: int = 10
    rate: str | None = None
    failing_since: datetime | None = None
    told_failing_at: datetime | None = None
    disabled_reason: str | None = None

    def signing(self, now: datetime) -> list[str]:
        """The secrets that sign now, newest first."""
        return [signing.secret for signing in self.secrets if signing.until is None or signing.until > now]

    def rotated(self, secret: str, now: datetime, *, overlap: timedelta) -> Endpoint:
        """With *secret* as the newest; those before it sign until *overlap* has passed, if not less long."""
        until = now + overlap
        before = (replace(signing, until=min(signing.until or until, until)) for signing in self.secrets)
        kept = [signing for signing in before if signing.until and signing.until > now]
        return replace(self, secrets=(SigningSecret(secret), *kept)[:_MOST_SECRETS])

    def switched(self, *, on: bool, reason: str | None = None) -> Endpoint:
        """Enabled, with a clean slate; or disabled for *reason*."""
        if on:
            return replace(self, enabled=True, failing_since=None, told_failing_at=None, disabled_reason=None)
        return replace(self, enabled=False, disabled_reason=reason)

    def to_json(self) -> dict[str, Any]:
        """The public shape; never a secret."""
        return {
            "id": self.id,
            "url": self.url,
            "event_types": list(self.event_types),
            "providers": list(self.providers),
            "description": self.description,
            "enabled": self.enabled,
            "timeout_seconds": self.timeout_seconds,
            "concurrency": self.concurrency,
            "rate": self.rate,
            "failing_since": iso(self.failing_since),
            "disabled_reason": self.disabled_reason,
            "created_at": iso(self.created_at),
        }


class Endpoints:
    """The sentences about endpoints, one transaction each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Endpoint]:
        return await self._database.read(lambda: _fetch(_ALL))

    async def page(self, *, after: str = "", limit: int) -> list[Endpoint]:
        """Oldest first. *after* is an endpoint's id: the cursor."""
        return await self._database.read(lambda: _fetch(_PAGE, after, limit))

    async def get(self, endpoint_id: str) -> Endpoint | None:
        return await self._database.read(lambda: _read(endpoint_id))

    async def add(self, endpoint: Endpoint) -> None:
        await self._database.write(lambda: _write(endpoint))

    async def change(self, endpoint_id: str, change: Callable[[Endpoint], Endpoint], now: datetime) -> Endpoint | None:
        """Read, *change* and write in one transaction. None: there is no such endpoint."""

        def work() -> Work[Endpoint | None]:
            before = yield from _read(endpoint_id, lock=FOR_UPDATE)
            if before is None:
                return None
            after = change(before)
            yield from _write(after)
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
            return bool(removed == 1)

        return await self._database.write(work)


def note(endpoint_id: str, now: datetime, *, well: bool, given_up: bool, gone: bool) -> Work[list[NewEvent]]:
    """
    How an endpoint fared in the attempts being booked, inside the booking's transaction. Returns what to tell.

    `endpoint.failing` is told once from the first failure to the next success, when a delivery was given up;
    `endpoint.disabled` when it said that it is *gone*, or has failed for days.
    """
    if well and not gone:
        yield Run(_WELL_AGAIN, (endpoint_id,))
    before = None if well and not (gone or given_up) else (yield from _read(endpoint_id, lock=FOR_UPDATE))
    if before is None or not before.enabled:
        return []
    new_events = []
    after = replace(before, failing_since=before.failing_since or now)
    if given_up and after.told_failing_at is None:
        after = replace(after, told_failing_at=now)
        new_events.append(NewEvent("endpoint.failing", after.to_json()))
    assert after.failing_since is not None
    if gone or now - after.failing_since > DISABLE_AFTER:
        reason = "it answered 410 Gone" if gone else f"it has failed since {iso(after.failing_since)}"
        after = after.switched(on=False, reason=reason)
        new_events.append(NewEvent("endpoint.disabled", after.to_json()))
        yield Run(_GIVE_UP, (us(now), _disabled(reason), endpoint_id))
    if well:
        after = replace(after, failing_since=None, told_failing_at=None)
    if after != before:
        yield from _write(after)
    return new_events


def _disabled(reason: str) -> str:
    return f"the endpoint was disabled: {reason}"


def _read(endpoint_id: str, *, lock: str = "") -> Work[Endpoint | None]:
    row = yield from first(_ONE, endpoint_id, lock=lock)
    return None if row is None else _endpoint(row)


def _fetch(query: str, *values: Any) -> Work[list[Endpoint]]:
    rows = yield Fetch(query, values)
    return [_endpoint(row) for row in rows]


_NAMES = (
    "id",
    "url",
    "event_types",
    "providers",
    "description",
    "enabled",
    "secrets",
    "timeout_seconds",
    "concurrency",
    "rate",
    "created_at",
    "failing_since",
    "told_failing_at",
    "disabled_reason",
)
_COLUMNS = ", ".join(_NAMES)
_ALL = f"SELECT {_COLUMNS} FROM endpoints ORDER BY id"
_PAGE = f"SELECT {_COLUMNS} FROM endpoints WHERE id > ? ORDER BY id LIMIT ?"
_ONE = f"SELECT {_COLUMNS} FROM endpoints WHERE id = ?"
_WRITE = (
    f"INSERT INTO endpoints ({_COLUMNS}) VALUES ({', '.join('?' for _ in _NAMES)}) ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _NAMES if name not in ("id", "created_at"))
)
_WELL_AGAIN = (
    "UPDATE endpoints SET failing_since = NULL, told_failing_at = NULL WHERE id = ? AND failing_since IS NOT NULL"
)
# What waits for a disabled endpoint is listed as undelivered, and can be replayed once it is enabled.
_GIVE_UP = (
    "UPDATE deliveries SET state = 'given_up', next_at = NULL, finished_at = ?, fault = 'theirs',"
    " last_error = ?, lease_owner = NULL, lease_until = NULL WHERE endpoint_id = ? AND state = 'pending'"
)
_DROP = (
    "UPDATE deliveries SET state = 'dropped', next_at = NULL, finished_at = ?, fault = NULL,"
    " last_error = 'the endpoint was removed', lease_owner = NULL, lease_until = NULL"
    " WHERE endpoint_id = ? AND state = 'pending'"
)


def _endpoint(values: Any) -> Endpoint:
    row = dict(zip(_NAMES, values, strict=True))
    return Endpoint(
        id=row["id"],
        url=row["url"],
        created_at=moment(row["created_at"]),
        secrets=tuple(
            SigningSecret(signing["secret"], from_us(signing["until"])) for signing in json.loads(row["secrets"])
        ),
        event_types=tuple(json.loads(row["event_types"])),
        providers=tuple(json.loads(row["providers"])),
        description=row["description"],
        enabled=bool(row["enabled"]),
        timeout_seconds=row["timeout_seconds"],
        concurrency=row["concurrency"],
        rate=row["rate"],
        failing_since=from_us(row["failing_since"]),
        told_failing_at=from_us(row["told_failing_at"]),
        disabled_reason=row["disabled_reason"],
    )


def _write(endpoint: Endpoint) -> Work[None]:
    values = (
        endpoint.id,
        endpoint.url,
        json.dumps(endpoint.event_types),
        json.dumps(endpoint.providers),
        endpoint.description,
        int(endpoint.enabled),
        json.dumps([{"secret": signing.secret, "until": to_us(signing.until)} for signing in endpoint.secrets]),
        endpoint.timeout_seconds,
        endpoint.concurrency,
        endpoint.rate,
        us(endpoint.created_at),
        to_us(endpoint.failing_since),
        to_us(endpoint.told_failing_at),
        endpoint.disabled_reason,
    )
    yield Hold("subscriptions")
    yield Run(_WRITE, values)
