"""Events: their types and bodies, and which subscriber gets which."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import orjson

from receiver.domain.entity import entity, json_of, shown, stored
from receiver.domain.jobs import Job, KeptImage
from receiver.domain.pauses import Pause

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
"""Events that a job's own `notify_url` gets."""


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to write. `data` is its subject in its public shape."""

    type: str
    data: dict[str, Any]
    job_id: str | None = None
    provider: str | None = None
    notify_url: str | None = None


def job_event(
    name: str, job: Job, images: Sequence[KeptImage], *, base_url: str, pause: Pause | None = None
) -> NewEvent:
    """An event about *job* in its public shape; *pause* is that of its provider, which a queued job waits for."""
    return NewEvent(
        name,
        job.to_json(images, base_url=base_url, pause=pause),
        job_id=job.id,
        provider=job.provider,
        notify_url=job.notify_url,
    )


@dataclass(frozen=True, slots=True)
class Subscription:
    """The subscription of an enabled endpoint; empty fields match everything."""

    endpoint_id: str
    types: frozenset[str]
    providers: frozenset[str]

    def wants(self, event_type: str, provider: str | None, subject_id: Any) -> bool:
        """Return whether it matches an event. An endpoint's own failure goes to the other endpoints."""
        if event_type in ENDPOINT_EVENTS and subject_id == self.endpoint_id:
            return False
        return (not self.types or event_type in self.types) and (not self.providers or provider in self.providers)


@entity
class Event:
    """One row of `events`. `body` is the exact text that is delivered to subscribers."""

    position: int = shown(big=True)
    id: str = shown("The `webhook-id` of its deliveries.", identifier=True)
    type: str = shown(length=48, schema={"enum": list(EVENT_TYPES)})
    job_id: str | None = shown(identifier=True)
    provider: str | None = shown(length=32)
    created_at: datetime = shown()
    body: str = stored(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The public shape: what is delivered, and its position."""
        body = json.loads(self.body)
        return _event_to_json(self) | {"timestamp": body["timestamp"], "data": body["data"]}


@dataclass(frozen=True, slots=True)
class EventFilter:
    """A filter for events; empty fields match all of them."""

    types: frozenset[str] = frozenset()
    providers: frozenset[str] = frozenset()
    job_id: str | None = None

    def takes(self, event: Event) -> bool:
        return (
            (not self.types or event.type in self.types)
            and (not self.providers or event.provider in self.providers)
            and (self.job_id is None or event.job_id == self.job_id)
        )


ALL = EventFilter()


_event_to_json = json_of(Event)


# --- Bodies and lanes -----------------------------------------------------------------------------------------------


def one_line(body: dict[str, Any]) -> str:
    """Return the body of an event: compact JSON without any character that a reader takes for a line break."""
    try:
        text = orjson.dumps(body).decode()
    except TypeError:  # an integer beyond 64 bits in the caller's metadata, or half of a surrogate pair
        text = _encode(body)
    return text if text.isascii() else _BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_NOTIFY = "notify:"


def is_notify_lane(lane: str) -> bool:
    return lane.startswith(_NOTIFY)


def notify_lane(url: str) -> str:
    """Return the lane of a notify URL. URLs that differ only in their query share it as an endpoint's deliveries do."""
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc}".lower() + parts.path
    return _NOTIFY + hashlib.sha256(place.encode()).hexdigest()[:24]
