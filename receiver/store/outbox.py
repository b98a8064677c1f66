"""
Events and their deliveries, written in the transaction of the change that they tell of.

`write_events` is called inside the caller's transaction: the state change, its event and one delivery for every
interested endpoint are committed together or not at all. Positions are given here: on one SQLite writer the order
inside `BEGIN IMMEDIATE` transactions is the order of their commits, so a reader that saw position n has seen all below
it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from receiver.domain.ids import new_id
from receiver.domain.jobs import Job, KeptImage, iso
from receiver.store.rows import us
from receiver.store.statements import Fetch, Hold, InsertMany, Positions, Work

JOB_EVENTS = (
    "job.queued",
    "job.running",
    "job.succeeded",
    "job.failed",
    "job.expired",
    "job.canceled",
    "job.unconfirmed",
    "job.overdue",
    "job.late_result",
    "job.images_kept",
    "job.images_lost",
)
ENDPOINT_EVENTS = ("endpoint.failing", "endpoint.disabled")
PROVIDER_EVENTS = ("provider.paused", "provider.resumed", "provider.callbacks_degraded")
EVENT_TYPES = JOB_EVENTS + ENDPOINT_EVENTS + PROVIDER_EVENTS

NOTIFIED = frozenset({"job.succeeded", "job.failed", "job.expired", "job.canceled", "job.unconfirmed", "job.overdue"})
"""What a job's own `notify_url` is told."""


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something to tell. `data` is the event's subject in its public shape."""

    type: str
    data: dict[str, Any]
    job_id: str | None = None
    provider: str | None = None
    notify_url: str | None = None


def job_event(name: str, job: Job, images: Sequence[KeptImage], *, base_url: str) -> NewEvent:
    """An event about *job* in its public shape."""
    return NewEvent(
        name,
        job.to_json(images, base_url=base_url),
        job_id=job.id,
        provider=job.provider,
        notify_url=job.notify_url,
    )


@dataclass(frozen=True, slots=True)
class Subscription:
    """What an enabled endpoint wants to hear. Empty: everything."""

    endpoint_id: str
    types: frozenset[str]
    providers: frozenset[str]

    def wants(self, event_type: str, provider: str | None, subject_id: Any) -> bool:
        """Whether an event is for it. What is wrong with an endpoint is told to the others."""
        if event_type in ENDPOINT_EVENTS and subject_id == self.endpoint_id:
            return False
        return (not self.types or event_type in self.types) and (not self.providers or provider in self.providers)


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


def one_line(body: dict[str, Any]) -> str:
    """The body of an event: compact JSON with none of the line breaks of any reader, so that a stream can carry it."""
    text = _encode(body)
    return text if text.isascii() else _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_NOTIFY = "notify:"


def is_notify_lane(lane: str) -> bool:
    return lane.startswith(_NOTIFY)


def notify_lane(url: str) -> str:
    """Notify URLs that differ in their query only share a lane, as an endpoint's deliveries do."""
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc}".lower() + parts.path
    return _NOTIFY + hashlib.sha256(place.encode()).hexdigest()[:24]
