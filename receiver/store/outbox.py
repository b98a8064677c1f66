"""
Events and their deliveries, written in the transaction of the change that they announce.

`write_events` is part of the caller's transaction: the state change, its event and one delivery for every interested
endpoint are committed together or not at all. Positions are given here: on one SQLite writer the order inside
`BEGIN IMMEDIATE` transactions is the order of their commits, so a reader that saw position n has seen all below it.

An event for more endpoints than one transaction should write for is committed with the place that its deliveries have
reached; the notifier writes the remaining ones, piece by piece (`fan_out`). A crash between two pieces leaves the place
of the last one. An endpoint that subscribes, is disabled or removed meanwhile counts as of the piece it belongs to.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.deliveries import Delivery
from receiver.domain.entity import iso
from receiver.domain.events import ENDPOINT_EVENTS, NOTIFIED, NewEvent, notify_lane, one_line
from receiver.domain.ids import new_id
from receiver.store.codecs import moment, us
from receiver.store.handover import Handover
from receiver.store.leases import LEASE
from receiver.store.statements import Fetch, Hold, InsertMany, Positions, Run, Work
from receiver.store.subscriptions import Subscribers, subscribers

MOST_AT_ONCE = 500
"""The most deliveries to endpoints in one transaction: each holds the writer for about 16 µs."""


def write_events(new_events: Sequence[NewEvent], now: datetime, *, first_delay_seconds: float = 0.0) -> Work[int]:
    """Write events and their deliveries. Returns how many deliveries were queued."""
    if not new_events:
        return 0
    yield Hold("subscriptions", shared=True)
    made = event_rows(new_events, (yield from subscribers()), now, first_delay_seconds)
    yield from write_event_rows(made)
    return len(made.deliveries)


@dataclass(frozen=True, slots=True)
class EventRows:
    """The rows of events, without their positions, and of their deliveries, as of a *revision* of subscriptions."""

    revision: str
    events: list[tuple[Any, ...]]
    deliveries: list[tuple[Any, ...]]
    fan_outs: list[tuple[str, str]]
    """(event id, place) of the events with more deliveries to write."""

    held: list[tuple[Any, ...]]
    """Rows of deliveries that are leased from the start."""

    def hold(self, handover: Handover, now: datetime) -> list[Delivery]:
        """Lease what this process's notifier has room for, and return that: to be handed over once committed."""
        found: list[Delivery] = []
        waiting: list[tuple[Any, ...]] = []
        bodies = {event[0]: event[-1] for event in self.events}
        taken, lease = Counter[str](), (handover.owner, us(now + LEASE))
        for row in self.deliveries:
            delivery_id, event_id, event_type, job_id, endpoint_id, url, lane, due = row[:8]
            if due <= us(now) and taken[lane] < handover.room(lane):
                taken[lane] += 1
                self.held.append((*row, *lease))
                found.append(
                    Delivery(
                        delivery_id,
                        event_id,
                        event_type,
                        job_id,
                        endpoint_id,
                        url,
                        lane,
                        retry=False,
                        tries=0,
                        due_at=moment(due),
                        example=False,
                        body=bodies[event_id],
                    )
                )
            else:
                waiting.append(row)
        self.deliveries[:] = waiting
        return found


def event_rows(
    new_events: Sequence[NewEvent], subscribers: Subscribers, now: datetime, first_delay_seconds: float
) -> EventRows:
    """Prepare the rows, before the transaction."""
    created, due = us(now), us(now + timedelta(seconds=first_delay_seconds))
    made = EventRows(subscribers.revision, [], [], [], [])
    left = MOST_AT_ONCE
    for new_event in new_events:
        event_id = new_id("evt")
        body = one_line({"type": new_event.type, "timestamp": iso(now), "data": new_event.data})
        made.events.append((event_id, new_event.type, new_event.job_id, new_event.provider, created, body))
        about = (event_id, new_event.type, new_event.job_id)
        interested = subscribers.interested(new_event.type, new_event.provider, new_event.data.get("id"))
        made.deliveries.extend(_for_endpoint(about, each, due, created) for each in interested[:left])
        if len(interested) > left:
            made.fan_outs.append((event_id, interested[left - 1] if left else ""))
        left -= min(left, len(interested))
        if new_event.notify_url and new_event.type in NOTIFIED:
            lane = notify_lane(new_event.notify_url)
            made.deliveries.append((new_id("dlv"), *about, None, new_event.notify_url, lane, due, created, *FIRST_TRY))
    return made


def write_event_rows(made: EventRows) -> Work[None]:
    """Write the events, with their positions if the engine gives them now, and the deliveries."""
    if not made.events:
        return
    positions = yield Positions(len(made.events))
    rows = [(position, *row) for position, row in zip(positions, made.events, strict=True)]
    yield InsertMany("events", _EVENT_COLUMNS, rows)
    if made.deliveries:
        yield InsertMany("deliveries", DELIVERY_COLUMNS, made.deliveries)
    if made.held:
        yield InsertMany("deliveries", (*DELIVERY_COLUMNS, "lease_owner", "lease_until"), made.held)
    if made.fan_outs:
        yield InsertMany("fan_outs", ("event_id", "place"), made.fan_outs)


def fan_out(now: datetime, first_delay_seconds: float) -> Work[bool]:
    """Write the next deliveries of events for many endpoints. Returns whether there are more to write."""
    yield Hold("subscriptions", shared=True)
    waiting = yield Fetch(_WAITING, (_EVENTS_AT_ONCE,), "FOR UPDATE OF f SKIP LOCKED")
    known = yield from subscribers()
    left, rows, created = MOST_AT_ONCE, list[tuple[Any, ...]](), us(now)
    for event_id, place, event_type, provider, job_id, created_at, body in waiting:
        interested: Sequence[str] = ()
        if event_type is not None:  # the event may have been pruned
            subject = json.loads(body)["data"].get("id") if event_type in ENDPOINT_EVENTS else None
            interested = known.interested(event_type, provider, subject)
        start = bisect_right(interested, place)
        piece = interested[start : start + left]
        due = created_at + int(1_000_000 * first_delay_seconds)
        rows += (_for_endpoint((event_id, event_type, job_id), each, due, created) for each in piece)
        left -= len(piece)
        if start + len(piece) < len(interested):
            yield Run(_MOVE, (piece[-1] if piece else place, event_id))
            break
        yield Run(_DONE, (event_id,))
    if rows:
        yield InsertMany("deliveries", DELIVERY_COLUMNS, rows)
    return bool(waiting)


def _for_endpoint(about: tuple[str, str, str | None], endpoint_id: str, due: int, created: int) -> tuple[Any, ...]:
    return (new_id("dlv"), *about, endpoint_id, None, endpoint_id, due, created, *FIRST_TRY)


_EVENTS_AT_ONCE = 50
_WAITING = (
    "SELECT f.event_id, f.place, e.type, e.provider, e.job_id, e.created_at, e.body"
    " FROM fan_outs f LEFT JOIN events e ON e.id = f.event_id ORDER BY f.event_id LIMIT ?"
)
_MOVE = "UPDATE fan_outs SET place = ? WHERE event_id = ?"
_DONE = "DELETE FROM fan_outs WHERE event_id = ?"
_EVENT_COLUMNS = ("position", "id", "type", "job_id", "provider", "created_at", "body")
DELIVERY_COLUMNS = (
    "id",
    "event_id",
    "event_type",
    "job_id",
    "endpoint_id",
    "url",
    "lane",
    "next_at",
    "created_at",
    "state",
    "tries",
    "retry",
    "example",
)
FIRST_TRY = ("pending", 0, 0, 0)
"""The values of the last four of `DELIVERY_COLUMNS` for a new delivery."""
