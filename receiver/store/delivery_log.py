"""
The delivery log: the list of deliveries, their attempts, and replays.

A replay puts a delivery that has ended back to its beginning: the same delivery and event id, a new round of tries; the
earlier ones stay in the log. Replays wait with the later tries, so that they never hold up new deliveries. Events
that an endpoint missed because it was disabled get their first delivery in a replay *since* a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from receiver.domain.deliveries import Attempt, DeliveryFilter, DeliveryView, Replayed, ReplayRefused
from receiver.domain.entity import iso
from receiver.domain.events import ENDPOINT_EVENTS, one_line
from receiver.domain.ids import lowest_id, new_id
from receiver.store.codecs import Codec, us
from receiver.store.database import Database
from receiver.store.outbox import DELIVERY_COLUMNS
from receiver.store.statements import Fetch, InsertMany, Run, Work, alone, first
from receiver.store.subscriptions import subscribers

_CHUNK = 500


class DeliveryLog:
    """The statements about deliveries for operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, wanted: DeliveryFilter, *, before: str | None = None, limit: int) -> list[DeliveryView]:
        """Return a page, newest first. *before* is a delivery's id: the cursor."""
        condition, values = _where(wanted)
        if before:
            condition += " AND d.id < ?"
            values.append(before)
        query = f"{_SELECT} WHERE {condition} ORDER BY d.id DESC LIMIT ?"
        rows = await self._database.read(alone(Fetch(query, (*values, limit))))
        return [_VIEWS.from_row(row) for row in rows]

    async def get(self, delivery_id: str) -> tuple[DeliveryView, Sequence[Attempt]] | None:
        """A delivery and its attempts, oldest first."""

        def work() -> Work[tuple[DeliveryView, Sequence[Attempt]] | None]:
            row = yield from first(f"{_SELECT} WHERE d.id = ?", delivery_id)
            if row is None:
                return None
            rows = yield Fetch(_ATTEMPTS, (delivery_id,))
            return _VIEWS.from_row(row), [_TRIES.from_row(attempt) for attempt in rows]

        return await self._database.read(work)

    async def replay(self, delivery_id: str, now: datetime, *, dry_run: bool = False) -> bool:
        """
        Deliver it (again) from now on; a pending delivery is tried now. False: there is no such delivery.

        Raises `ReplayRefused` where its endpoint is gone or disabled.
        """

        def work() -> Work[bool]:
            row = yield from first(_ENDPOINT_OF, delivery_id)
            if row is None:
                return False
            endpoint_id, enabled, example = row
            if endpoint_id is not None and enabled is None:
                raise ReplayRefused("endpoint_gone", "its endpoint was removed", remedy="make a new endpoint")
            if endpoint_id is not None and not enabled and not example:
                raise ReplayRefused("endpoint_disabled", "its endpoint is disabled", remedy="enable the endpoint first")
            if not dry_run:
                yield Run(f"{_AGAIN} WHERE id = ? AND {_NOT_HELD}", (us(now), delivery_id, us(now)))
            return True

        return await self._database.write(work)

    async def replay_many(
        self,
        now: datetime,
        *,
        endpoint_id: str | None = None,
        since: datetime | None = None,
        states: Sequence[str] = (),
        dry_run: bool = False,
    ) -> Replayed:
        """
        Deliver again what has ended in *states*, of one endpoint or of all, since a time or ever.

        Without *states*: all failures, and with *since* everything. Deliveries whose endpoint is disabled or removed
        stay as they are. Committed piece by piece; what was queued before a process dies stays queued.
        """
        if not states:
            states = ("given_up", "delivered") if since else ("given_up",)
        again, place = 0, lowest_id("dlv", since) if since else ""
        while True:
            ids = await self._ended(place, endpoint_id, states)
            if not ids:
                break
            if not dry_run:
                again_now = Run(f"{_AGAIN} WHERE id IN (??) AND state <> 'pending'", (us(now), ids))
                await self._database.write(alone(again_now))
            again, place = again + len(ids), ids[-1]
        missing = 0
        if since is not None and "given_up" in states:
            missing = await self._queue_missing(since, now, endpoint_id, dry_run=dry_run)
        return Replayed(again, missing)

    async def send_example(self, endpoint_id: str, event_type: str, data: dict[str, Any], now: datetime) -> str:
        """
        Queue an example event for one endpoint; returns its delivery's id.

        It has no position: streams and pages don't show it. It is tried once, whether or not the endpoint is enabled.
        """
        event_id, delivery_id = new_id("evt"), new_id("dlv")
        body = one_line({"type": event_type, "timestamp": iso(now), "data": data})
        event = (event_id, event_type, us(now), body, 1)
        about = (delivery_id, event_id, event_type, None, endpoint_id, None, endpoint_id, us(now), us(now))

        def work() -> Work[str]:
            yield InsertMany("events", ("id", "type", "created_at", "body", "example"), [event])
            yield InsertMany("deliveries", DELIVERY_COLUMNS, [(*about, *_EXAMPLE)])
            return delivery_id

        return await self._database.write(work)

    async def _ended(self, after: str, endpoint_id: str | None, states: Sequence[str]) -> list[str]:
        of_endpoint = " AND d.endpoint_id = ?" if endpoint_id else ""
        # Several states are not in the order of ids in their index: every piece would be sorted again.
        state = "d.state" if len(states) == 1 and not endpoint_id else "d.state || ''"
        query = (
            "SELECT d.id FROM deliveries d LEFT JOIN endpoints e ON e.id = d.endpoint_id"
            f" WHERE d.id > ? AND {state} IN (??){of_endpoint} AND d.example = 0"
            " AND (d.endpoint_id IS NULL OR e.enabled = 1) ORDER BY d.id LIMIT ?"
        )
        values = (after, list(states), *([endpoint_id] if endpoint_id else []), _CHUNK)
        return [row[0] for row in await self._database.read(alone(Fetch(query, values)))]

    async def _queue_missing(self, since: datetime, now: datetime, endpoint_id: str | None, *, dry_run: bool) -> int:
        missing, place = 0, lowest_id("evt", since)

        def work() -> Work[tuple[int, str] | None]:
            events = yield Fetch(_EVENTS_AFTER, (place, us(since), _CHUNK))
            if not events:
                return None
            rows = yield from _missing_of(events, endpoint_id, now)
            if rows and not dry_run:
                yield InsertMany("deliveries", DELIVERY_COLUMNS, rows)
            return len(rows), events[-1][0]

        while (queued := await self._database.write(work)) is not None:
            missing, place = missing + queued[0], queued[1]
        return missing


def _missing_of(events: Sequence[Any], endpoint_id: str | None, now: datetime) -> Work[list[tuple[Any, ...]]]:
    """Return rows for the deliveries of *events* that enabled endpoints, made before them, were never sent."""
    known = yield Fetch(_SENT, ([event[0] for event in events],))
    sent = {(row[0], row[1]) for row in known}
    made = dict((yield Fetch("SELECT id, created_at FROM endpoints")))
    rows = []
    for subscription in (yield from subscribers()).subscriptions:
        lane = subscription.endpoint_id
        if endpoint_id is not None and lane != endpoint_id:
            continue
        for event_id, event_type, job_id, provider, created_at, body in events:
            about = json.loads(body)["data"].get("id") if event_type in ENDPOINT_EVENTS else None
            if (event_id, lane) in sent or created_at < made[lane]:
                continue
            if subscription.wants(event_type, provider, about):
                row = (new_id("dlv"), event_id, event_type, job_id, lane, None, lane, us(now), us(now))
                rows.append((*row, *_LATER_TRY))
    return rows


_EXAMPLE = ("pending", 0, 0, 1)
_LATER_TRY = ("pending", 0, 1, 0)
_SENT = "SELECT event_id, endpoint_id FROM deliveries WHERE event_id IN (??)"
_VIEWS, _TRIES = Codec(DeliveryView), Codec(Attempt)
_ATTEMPTS = f"SELECT {_TRIES.sql} FROM attempts WHERE delivery_id = ? ORDER BY id"
_ENDPOINT_OF = (
    "SELECT d.endpoint_id, e.enabled, d.example FROM deliveries d"
    " LEFT JOIN endpoints e ON e.id = d.endpoint_id WHERE d.id = ?"
)
_SELECT = f"SELECT {', '.join(f'd.{name}' for name in _VIEWS.columns)} FROM deliveries d".replace(
    "d.url", "coalesce(d.url, e.url)"
) + (" LEFT JOIN endpoints e ON e.id = d.endpoint_id")
_AGAIN = (
    "UPDATE deliveries SET state = 'pending', tries = 0, retry = 1, next_at = ?, finished_at = NULL, fault = NULL,"
    " lease_owner = NULL, lease_until = NULL"
)
_NOT_HELD = "(state <> 'pending' OR lease_until IS NULL OR lease_until < ?)"
_EVENTS_AFTER = (
    "SELECT id, type, job_id, provider, created_at, body FROM events"
    " WHERE id > ? AND created_at >= ? AND example = 0"
    " AND NOT EXISTS (SELECT 1 FROM fan_outs f WHERE f.event_id = events.id)"  # is being written
    " ORDER BY id LIMIT ?"
)


def _where(choice: DeliveryFilter) -> tuple[str, list[Any]]:
    """Return *choice* as a condition and its values."""
    parts, values = ["1 = 1"], list[Any]()
    for column, several in (("state", choice.states), ("event_type", choice.event_types)):
        if several:
            parts.append(f"d.{column} IN (??)")
            values.append(list(several))
    for column, value in (
        ("endpoint_id", choice.endpoint_id),
        ("job_id", choice.job_id),
        ("event_id", choice.event_id),
        ("fault", choice.fault),
    ):
        if value is not None:
            parts.append(f"d.{column} = ?")
            values.append(value)
    if choice.undelivered or choice.fault is not None:  # few among many: by the index on the state
        parts.append("d.state IN ('pending', 'given_up', 'dropped')")
    if choice.undelivered:
        parts.append("(d.state <> 'pending' OR d.tries > 0)")
    return " AND ".join(parts), values
