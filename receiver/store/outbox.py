"""
Events and their deliveries, written in the transaction of the change that they announce.

`write_events` is part of the caller's transaction: the state change, its event and one delivery for every interested
endpoint are committed together or not at all. Positions are given here: on one SQLite writer the order inside
`BEGIN IMMEDIATE` transactions is the order of their commits, so a reader that saw position n has seen all below it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from receiver.domain.entity import iso
from receiver.domain.events import NOTIFIED, NewEvent, Subscription, notify_lane, one_line
from receiver.domain.ids import new_id
from receiver.store.codecs import us
from receiver.store.statements import Fetch, Hold, InsertMany, Positions, Work

_SUBSCRIPTIONS = "SELECT id, event_types, providers FROM endpoints WHERE enabled = 1 ORDER BY id"


def subscriptions() -> Work[list[Subscription]]:
    """The subscriptions of all enabled endpoints."""
    rows = yield Fetch(_SUBSCRIPTIONS)
    return [Subscription(row[0], frozenset(json.loads(row[1])), frozenset(json.loads(row[2]))) for row in rows]


def write_events(new_events: Sequence[NewEvent], now: datetime, *, first_delay_seconds: float = 0.0) -> Work[int]:
    """Write events and their deliveries. Returns how many deliveries were queued."""
    if not new_events:
        return 0
    yield Hold("subscriptions", shared=True)
    made = event_rows(new_events, (yield from subscriptions()), now, first_delay_seconds)
    yield from write_event_rows(made)
    return len(made.deliveries)


@dataclass(frozen=True, slots=True)
class EventRows:
    """The rows of some events, all but their positions, and of their deliveries."""

    subscriptions: list[Subscription]
    events: list[tuple[Any, ...]]
    deliveries: list[tuple[Any, ...]]


def event_rows(
    new_events: Sequence[NewEvent], subscriptions: list[Subscription], now: datetime, first_delay_seconds: float
) -> EventRows:
    """Prepare the rows, before the transaction."""
    created, due = us(now), us(now + timedelta(seconds=first_delay_seconds))
    made = EventRows(subscriptions, [], [])
    for new_event in new_events:
        event_id = new_id("evt")
        body = one_line({"type": new_event.type, "timestamp": iso(now), "data": new_event.data})
        made.events.append((event_id, new_event.type, new_event.job_id, new_event.provider, created, body))
        about = (event_id, new_event.type, new_event.job_id)
        for subscription in subscriptions:
            if subscription.wants(new_event.type, new_event.provider, new_event.data.get("id")):
                made.deliveries.append(
                    (
                        new_id("dlv"),
                        *about,
                        subscription.endpoint_id,
                        None,
                        subscription.endpoint_id,
                        due,
                        created,
                        *FIRST_TRY,
                    )
                )
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
