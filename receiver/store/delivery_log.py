"""
What became of deliveries: the list, the attempts, and replays.

A replay puts a delivery that has ended back to its beginning: the same delivery and event id, a new round of tries,
with those before still in the log. Replays wait with the later tries, so that they never hold up what is new. Events
that an endpoint would have been sent had it not been disabled get their first delivery in a replay since a moment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from receiver.domain.ids import lowest_id, new_id
from receiver.domain.jobs import iso
from receiver.domain.redaction import redact
from receiver.store.database import Database
from receiver.store.outbox import DELIVERY_COLUMNS, ENDPOINT_EVENTS, one_line, subscriptions
from receiver.store.rows import from_us, moment, us
from receiver.store.statements import Fetch, InsertMany, Run, Work, alone, first

_CHUNK = 500


class DeliveryState(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"
    DROPPED = "dropped"
    """Its endpoint was removed before it could be delivered."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a delivery."""

    started_at: datetime
    seconds: float
    status: int | None
    answer: bytes | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "started_at": iso(self.started_at),
            "seconds": round(self.seconds, 4),
            "status": self.status,
            "answer": None if self.answer is None else redact(self.answer.decode("utf-8", "replace")),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """A delivery for people and programs to look at. `fault`: `ours` or `theirs`, once it went wrong."""

    id: str
    event_id: str
    event_type: str
    job_id: str | None
    endpoint_id: str | None
    url: str | None
    state: str
    tries: int
    example: bool
    next_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    last_status: int | None
    last_error: str | None
    fault: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "event_id": self.event_id,
            "event_type": self.event_type,
            "job_id": self.job_id,
            "endpoint_id": self.endpoint_id,
            "url": self.url,
            "state": self.state,
            "tries": self.tries,
            "example": self.example,
            "next_at": iso(self.next_at),
            "created_at": iso(self.created_at),
            "finished_at": iso(self.finished_at),
            "last_status": self.last_status,
            "last_error": self.last_error,
            "fault": self.fault,
        }


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries to list. Empty or None: whatever. `undelivered`: ended or tried, and not delivered."""

    states: tuple[str, ...] = ()
    endpoint_id: str | None = None
    job_id: str | None = None
    event_id: str | None = None
    event_types: tuple[str, ...] = ()
    fault: str | None = None
    undelivered: bool = False

    def where(self) -> tuple[str, list[Any]]:
        """A condition in SQL and its values."""
        parts, values = ["1 = 1"], list[Any]()
        for column, several in (("state", self.states), ("event_type", self.event_types)):
            if several:
                parts.append(f"d.{column} IN (??)")
                values.append(list(several))
        for column, value in (
            ("endpoint_id", self.endpoint_id),
            ("job_id", self.job_id),
            ("event_id", self.event_id),
            ("fault", self.fault),
        ):
            if value is not None:
                parts.append(f"d.{column} = ?")
                values.append(value)
        if self.undelivered or self.fault is not None:  # few among many: by the index on the state
            parts.append("d.state IN ('pending', 'given_up', 'dropped')")
        if self.undelivered:
            parts.append("(d.state <> 'pending' OR d.tries > 0)")
        return " AND ".join(parts), values


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay put back, or would: deliveries that had ended, and events that had none yet."""

    again: int
    missing: int

    def to_json(self) -> dict[str, Any]:
        return {"replayed": self.again + self.missing, "again": self.again, "never_queued": self.missing}


class ReplayRefused(Exception):
    """It can't be delivered as things are. `code` is stable, `remedy` says what to change."""

    def __init__(self, code: str, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy


class DeliveryLog:
    """The sentences of operators about deliveries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, wanted: DeliveryFilter, *, before: str | None = None, limit: int) -> list[DeliveryView]:
        """Newest first. *before* is a delivery's id: the cursor."""
        condition, values = wanted.where()
        if before:
            condition += " AND d.id < ?"
            values.append(before)
        query = f"{_SELECT} WHERE {condition} ORDER BY d.id DESC LIMIT ?"
        rows = await self._database.read(alone(Fetch(query, (*values, limit))))
        return [_shown(row) for row in rows]

    async def get(self, delivery_id: str) -> tuple[DeliveryView, Sequence[Attempt]] | None:
        """A delivery and its attempts, oldest first."""

        def work() -> Work[tuple[DeliveryView, Sequence[Attempt]] | None]:
            row = yield from first(f"{_SELECT} WHERE d.id = ?", delivery_id)
            if row is None:
                return None
            rows = yield Fetch(_ATTEMPTS, (delivery_id,))
            return _shown(row), [_attempt(attempt) for attempt in rows]

        return await self._database.read(work)

    async def replay(self, delivery_id: str, now: datetime, *, dry_run: bool = False) -> bool:
        """
        Deliver it (again) from now on; one that waits for its next try gets it now. False: there is no such delivery.

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
        Deliver again what has ended in *states*, of one endpoint or of all, since a moment or ever.

        Without *states*: all failures, and with *since* everything. Deliveries whose endpoint is disabled or removed
        stay as they are. Committed piece by piece; what was put back when a process dies stays so.
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
        # Several states are not in the order of ids in their index: every piece would be sorted anew.
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
    """Rows for what enabled endpoints would have been sent of *events* since they were made, and never were."""
    known = yield Fetch(_SENT, ([event[0] for event in events],))
    sent = {(row[0], row[1]) for row in known}
    made = dict((yield Fetch("SELECT id, created_at FROM endpoints")))
    rows = []
    for subscription in (yield from subscriptions()):
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
_ATTEMPTS = "SELECT started_at, seconds, status, answer, error FROM attempts WHERE delivery_id = ? ORDER BY id"
_ENDPOINT_OF = (
    "SELECT d.endpoint_id, e.enabled, d.example FROM deliveries d"
    " LEFT JOIN endpoints e ON e.id = d.endpoint_id WHERE d.id = ?"
)
_SELECT = (
    "SELECT d.id, d.event_id, d.event_type, d.job_id, d.endpoint_id, coalesce(d.url, e.url), d.state, d.tries,"
    " d.example, d.next_at, d.created_at, d.finished_at, d.last_status, d.last_error, d.fault"
    " FROM deliveries d LEFT JOIN endpoints e ON e.id = d.endpoint_id"
)
_AGAIN = (
    "UPDATE deliveries SET state = 'pending', tries = 0, retry = 1, next_at = ?, finished_at = NULL, fault = NULL,"
    " lease_owner = NULL, lease_until = NULL"
)
_NOT_HELD = "(state <> 'pending' OR lease_until IS NULL OR lease_until < ?)"
_EVENTS_AFTER = (
    "SELECT id, type, job_id, provider, created_at, body FROM events"
    " WHERE id > ? AND created_at >= ? AND example = 0 ORDER BY id LIMIT ?"
)


def _attempt(row: Any) -> Attempt:
    return Attempt(started_at=moment(row[0]), seconds=row[1], status=row[2], answer=row[3], error=row[4])


def _shown(row: Any) -> DeliveryView:
    return DeliveryView(
        id=row[0],
        event_id=row[1],
        event_type=row[2],
        job_id=row[3],
        endpoint_id=row[4],
        url=row[5],
        state=row[6],
        tries=row[7],
        example=bool(row[8]),
        next_at=from_us(row[9]),
        created_at=moment(row[10]),
        finished_at=from_us(row[11]),
        last_status=row[12],
        last_error=row[13],
        fault=row[14],
    )
