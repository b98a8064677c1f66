"""
Deliveries and attempts: their statements, one transaction each.

A delivery is `pending` until it is `delivered` or `given_up` (or `dropped`, when its endpoint was removed). An attempt,
its effect on its delivery, and the health of its endpoint are one commit, written after the answer arrived: after a
crash in between, the event is delivered again, with the same event id. Deliveries wait in lanes, one for each endpoint
and one for each origin among notify URLs; first tries and later ones wait apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.deliveries import Agenda, Delivery, Outcome
from receiver.domain.events import NewEvent
from receiver.store.codecs import moment, to_us, us
from receiver.store.database import Database
from receiver.store.endpoints import note
from receiver.store.outbox import fan_out, write_events
from receiver.store.statements import Fetch, InsertMany, Run, RunMany, Work, alone, first


class Deliveries:
    """The notifier's statements."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def fans_out(self) -> bool:
        """Return whether there are events with deliveries to write."""
        return await self._database.read(lambda: first(_FAN_OUT)) is not None

    async def fan_out(self, now: datetime, *, first_delay_seconds: float) -> bool:
        """Write some of those deliveries. Returns whether there may be more to write."""
        return await self._database.write(lambda: fan_out(now, first_delay_seconds))

    async def agenda(self, now: datetime) -> Agenda:
        """Return when each lane has work, found by skipping from lane to lane in the index."""
        rows = await self._database.read(alone(Fetch(AGENDA, (us(now), us(now)))))
        return Agenda(
            {row[0]: moment(row[1]) for row in rows if row[1] is not None},
            {row[0]: moment(row[2]) for row in rows if row[2] is not None},
        )

    async def claim(
        self, wanted: Mapping[tuple[str, bool], int], now: datetime, *, owner: str, lease: timedelta
    ) -> list[Delivery]:
        """Take up to `wanted[lane, retry]` due deliveries, earliest due first."""

        def work() -> Work[list[Delivery]]:
            found: list[Delivery] = []
            for (lane, retry), places in wanted.items():
                rows = yield Fetch(_DUE, (lane, int(retry), us(now), us(now), places), _OF_DELIVERIES)
                found += map(_delivery, rows)
            yield Run(_HOLD, (owner, us(now + lease), [delivery.id for delivery in found]))
            return found

        return await self._database.write(work)

    async def renew(self, ids: Sequence[str], now: datetime, *, owner: str, lease: timedelta) -> None:
        """Extend the leases on those of *ids* that *owner* still holds, until *now* + *lease*."""
        await self._database.write(alone(Run(_RENEW, (us(now + lease), list(ids), owner))))

    async def hand_back(self, ids: Sequence[str], *, owner: str) -> None:
        """Release those of *ids* that *owner* holds."""
        await self._database.write(alone(Run(_HAND_BACK, (list(ids), owner))))

    async def book(self, outcomes: Sequence[Outcome], now: datetime) -> int:
        """Write attempts and their consequences, in one commit. Returns the number of new events."""
        return await self._database.write(lambda: _book(outcomes, now))


def _book(outcomes: Sequence[Outcome], now: datetime) -> Work[int]:
    attempts = [(o.delivery.id, us(o.started_at), o.seconds, o.status, o.answer, o.error) for o in outcomes]
    yield InsertMany("attempts", ("delivery_id", "started_at", "seconds", "status", "answer", "error"), attempts)
    ended = yield Fetch(_ENDED_MEANWHILE, ([o.delivery.id for o in outcomes],))
    if ended:
        others = {row[0] for row in ended}
        yield RunMany(_COUNT_TRY, [(o.delivery.id, o.state) for o in outcomes if o.delivery.id in others])
    alike: dict[tuple[Any, ...], list[str]] = {}
    for outcome in outcomes:
        alike.setdefault(_booked(outcome, now), []).append(outcome.delivery.id)
    for values, ids in alike.items():
        yield Run(_BOOK, (*values, ids, values[0]))
    by_endpoint: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.delivery.endpoint_id is not None and not outcome.delivery.example:
            by_endpoint.setdefault(outcome.delivery.endpoint_id, []).append(outcome)
    new_events: list[NewEvent] = []
    for endpoint_id, of_endpoint in by_endpoint.items():
        new_events += yield from note(
            endpoint_id,
            now,
            well=any(o.state == "delivered" for o in of_endpoint),
            given_up=any(o.state == "given_up" for o in of_endpoint),
            gone=any(o.gone for o in of_endpoint),
        )
    yield from write_events(new_events, now)
    return len(new_events)


def _booked(outcome: Outcome, now: datetime) -> tuple[Any, ...]:
    finished_at = None if outcome.next_at else us(now)
    return outcome.state, to_us(outcome.next_at), finished_at, outcome.status, outcome.error, outcome.fault


_FAN_OUT = "SELECT 1 FROM fan_outs LIMIT 1"
_HOLD = "UPDATE deliveries SET lease_owner = ?, lease_until = ? WHERE id IN (??)"
_RENEW = "UPDATE deliveries SET lease_until = ? WHERE id IN (??) AND lease_owner = ?"
_HAND_BACK = "UPDATE deliveries SET lease_owner = NULL, lease_until = NULL WHERE id IN (??) AND lease_owner = ?"
# A delivery that ended meanwhile (its endpoint was disabled or removed during the try) stays so; the try counts.
_ENDED_MEANWHILE = "SELECT id FROM deliveries WHERE id IN (??) AND state <> 'pending'"
_COUNT_TRY = (
    "UPDATE deliveries SET tries = tries + 1"
    " WHERE id = ? AND state <> 'pending' AND NOT (state = 'given_up' AND ? = 'delivered')"
)
_BOOK = (
    "UPDATE deliveries SET state = ?, tries = tries + 1, retry = 1, next_at = ?, finished_at = ?,"
    " last_status = ?, last_error = ?, fault = ?, lease_owner = NULL, lease_until = NULL"
    " WHERE id IN (??) AND (state = 'pending' OR (state = 'given_up' AND ? = 'delivered'))"
)
# Without its name the planner takes another index, and each lane costs a walk over all that is pending.
AGENDA = (
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
_OF_DELIVERIES = "FOR UPDATE OF d SKIP LOCKED"
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
