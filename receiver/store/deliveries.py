"""
Deliveries and attempts: their statements, one transaction each.

A delivery is `pending` until it is `delivered` or `given_up` (or `dropped`, when its endpoint was removed). An attempt,
what it made of its delivery, and how its endpoint fares are one commit, written after the answer came: a death in
between delivers again, with the same event id. Deliveries wait in lanes, one for each endpoint and one for each origin
among notify URLs; first tries and later ones wait apart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from receiver.store.database import Database
from receiver.store.endpoints import note
from receiver.store.outbox import NewEvent, write_events_in
from receiver.store.rows import moment, to_us, us


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint (or notify URL), taken for an attempt. `example`: a test, tried once."""

    id: str
    event_id: str
    event_type: str
    job_id: str | None
    endpoint_id: str | None
    url: str | None
    lane: str
    retry: bool
    tries: int
    due_at: datetime
    example: bool
    body: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt came to. `next_at` None: it is over, as `state` says. `gone`: never again, said the endpoint."""

    delivery: Delivery
    state: str
    started_at: datetime
    seconds: float
    status: int | None = None
    answer: bytes | None = field(default=None, repr=False)
    error: str | None = None
    next_at: datetime | None = None
    fault: str | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Agenda:
    """When each lane has its next first try and its next later try that nobody holds. Either may be None."""

    first: Mapping[str, datetime]
    later: Mapping[str, datetime]

    def next_after(self, now: datetime) -> datetime | None:
        return min((at for at in (*self.first.values(), *self.later.values()) if at > now), default=None)


class Deliveries:
    """The sentences of the notifier."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def agenda(self, now: datetime) -> Agenda:
        """What waits in each lane, found by skipping from lane to lane in the index."""
        rows = await self._database.glance(lambda db: db.execute(_AGENDA, (us(now), us(now))).fetchall())
        return Agenda(
            {row[0]: moment(row[1]) for row in rows if row[1] is not None},
            {row[0]: moment(row[2]) for row in rows if row[2] is not None},
        )

    async def claim(
        self, wanted: Mapping[tuple[str, bool], int], now: datetime, *, owner: str, lease: timedelta
    ) -> list[Delivery]:
        """Take up to `wanted[lane, retry]` due deliveries, earliest due first."""

        def work(db: sqlite3.Connection) -> list[Delivery]:
            found: list[Delivery] = []
            for (lane, retry), places in wanted.items():
                found += map(_delivery, db.execute(_DUE, (lane, int(retry), us(now), us(now), places)))
            db.executemany(
                "UPDATE deliveries SET lease_owner = ?, lease_until = ? WHERE id = ?",
                [(owner, us(now + lease), delivery.id) for delivery in found],
            )
            return found

        return await self._database.batch(work)

    async def renew(self, ids: Sequence[str], now: datetime, *, owner: str, lease: timedelta) -> None:
        """Hold *ids* on until *now* + *lease*, those of them that *owner* still holds."""
        await self._each(
            "UPDATE deliveries SET lease_until = ? WHERE id = ? AND lease_owner = ?",
            [(us(now + lease), one, owner) for one in ids],
        )

    async def hand_back(self, ids: Sequence[str], *, owner: str) -> None:
        """Let others have *ids*, those of them that *owner* holds."""
        await self._each(
            "UPDATE deliveries SET lease_owner = NULL, lease_until = NULL WHERE id = ? AND lease_owner = ?",
            [(one, owner) for one in ids],
        )

    async def book(self, outcomes: Sequence[Outcome], now: datetime) -> int:
        """Write attempts and what they made of deliveries and endpoints, in one commit. Returns how much was told."""
        return await self._database.batch(lambda db: _book(db, outcomes, now))

    async def _each(self, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        await self._database.batch(lambda db: db.executemany(statement, values))


def _book(db: sqlite3.Connection, outcomes: Sequence[Outcome], now: datetime) -> int:
    db.executemany(
        "INSERT INTO attempts (delivery_id, started_at, seconds, status, answer, error) VALUES (?, ?, ?, ?, ?, ?)",
        [(o.delivery.id, us(o.started_at), o.seconds, o.status, o.answer, o.error) for o in outcomes],
    )
    # What was ended meanwhile (its endpoint was disabled or removed during the try) stays so; the try counts.
    db.executemany(
        "UPDATE deliveries SET tries = tries + 1"
        " WHERE id = ? AND state <> 'pending' AND NOT (state = 'given_up' AND ? = 'delivered')",
        [(o.delivery.id, o.state) for o in outcomes],
    )
    db.executemany(
        "UPDATE deliveries SET state = ?, tries = tries + 1, retry = 1, next_at = ?, finished_at = ?,"
        " last_status = ?, last_error = ?, fault = ?, lease_owner = NULL, lease_until = NULL"
        " WHERE id = ? AND (state = 'pending' OR (state = 'given_up' AND ? = 'delivered'))",
        [
            (
                o.state,
                to_us(o.next_at),
                None if o.next_at else us(o.started_at + timedelta(seconds=o.seconds)),
                o.status,
                o.error,
                o.fault,
                o.delivery.id,
                o.state,
            )
            for o in outcomes
        ],
    )
    by_endpoint: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.delivery.endpoint_id is not None and not outcome.delivery.example:
            by_endpoint.setdefault(outcome.delivery.endpoint_id, []).append(outcome)
    new_events: list[NewEvent] = []
    for endpoint_id, some in by_endpoint.items():
        new_events += note(
            db,
            endpoint_id,
            now,
            well=any(one.state == "delivered" for one in some),
            given_up=any(one.state == "given_up" for one in some),
            gone=any(one.gone for one in some),
        )
    write_events_in(db, new_events, now)
    return len(new_events)


# Without its name the planner takes another index, and each lane costs a walk over all that is pending.
_AGENDA = (
    "WITH RECURSIVE lanes(lane) AS ("
    " SELECT min(lane) FROM deliveries INDEXED BY deliveries_due WHERE state = 'pending'"
    " UNION ALL SELECT (SELECT min(lane) FROM deliveries INDEXED BY deliveries_due"
    " WHERE state = 'pending' AND lane > lanes.lane)"
    " FROM lanes WHERE lanes.lane IS NOT NULL)"
    " SELECT lane,"
    " (SELECT next_at FROM deliveries d WHERE d.state = 'pending' AND d.lane = lanes.lane AND d.retry = 0"
    " AND (d.lease_until IS NULL OR d.lease_until < ?) ORDER BY next_at LIMIT 1),"
    " (SELECT next_at FROM deliveries d WHERE d.state = 'pending' AND d.lane = lanes.lane AND d.retry = 1"
    " AND (d.lease_until IS NULL OR d.lease_until < ?) ORDER BY next_at LIMIT 1)"
    " FROM lanes WHERE lane IS NOT NULL"
)
_DUE = (
    "SELECT d.id, d.event_id, d.event_type, d.job_id, d.endpoint_id, d.url, d.lane, d.retry, d.tries, d.next_at,"
    " d.example, e.body FROM deliveries d JOIN events e ON e.id = d.event_id"
    " WHERE d.state = 'pending' AND d.lane = ? AND d.retry = ? AND d.next_at <= ?"
    " AND (d.lease_until IS NULL OR d.lease_until < ?) ORDER BY d.next_at LIMIT ?"
)


def _delivery(row: Any) -> Delivery:
    return Delivery(
        id=row[0],
        event_id=row[1],
        event_type=row[2],
        job_id=row[3],
        endpoint_id=row[4],
        url=row[5],
        lane=row[6],
        retry=bool(row[7]),
        tries=row[8],
        due_at=moment(row[9]),
        example=bool(row[10]),
        body=row[11],
    )
