"""
Deliveries: one event for one endpoint or notify URL, its attempts, and what the lists and replays of them show.

A delivery is `pending` until it is `delivered` or `given_up` (or `dropped`, when its endpoint was removed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from receiver.domain.entity import entity, json_of, shown
from receiver.domain.events import EVENT_TYPES
from receiver.domain.redaction import redact


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint (or notify URL), leased for an attempt. `example`: a test, tried once."""

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
    """The result of one attempt. `next_at` is None after the last one; `gone`: the endpoint answered 410."""

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
    """The times of each lane's next first try and next later try that are not leased. Either may be missing."""

    first: Mapping[str, datetime]
    later: Mapping[str, datetime]

    @property
    def lanes(self) -> set[str]:
        return {*self.first, *self.later}

    def due(self, now: datetime) -> list[tuple[str, bool]]:
        """Return (lane, is a later try) of everything that is due."""
        times = ((False, self.first), (True, self.later))
        return [(lane, retry) for retry, of_lanes in times for lane, at in of_lanes.items() if at <= now]

    def next_after(self, now: datetime) -> datetime | None:
        return min((at for at in (*self.first.values(), *self.later.values()) if at > now), default=None)


class DeliveryState(StrEnum):
    """The state of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"
    DROPPED = "dropped"
    """Its endpoint was removed before it could be delivered."""


@entity
class Attempt:
    """An attempt of a delivery."""

    started_at: datetime = shown()
    seconds: float = shown()
    status: int | None = shown()
    answer: bytes | None = shown("The first bytes of the answer.", repr=False)
    error: str | None = shown()

    def to_json(self) -> dict[str, Any]:
        answer = None if self.answer is None else redact(self.answer.decode("utf-8", "replace"))
        return _attempt_to_json(self) | {"seconds": round(self.seconds, 4), "answer": answer}


@entity
class DeliveryView:
    """A delivery as people and programs see it. `fault`: `ours` or `theirs`, once it went wrong."""

    id: str = shown(identifier=True)
    event_id: str = shown(identifier=True)
    event_type: str = shown(length=48, schema={"enum": list(EVENT_TYPES)})
    job_id: str | None = shown(identifier=True)
    endpoint_id: str | None = shown("Null: the job's own notify_url.", identifier=True)
    url: str | None = shown("Null: the endpoint was removed.")
    state: DeliveryState = shown()
    tries: int = shown("Since it was queued, or replayed.")
    example: bool = shown("Sent by an endpoint's test.")
    next_at: datetime | None = shown()
    created_at: datetime = shown()
    finished_at: datetime | None = shown()
    last_status: int | None = shown()
    last_error: str | None = shown()
    fault: str | None = shown("Whose fault the last failure was.", length=8, schema={"enum": ["ours", "theirs"]})

    def to_json(self) -> dict[str, Any]:
        return _delivery_to_json(self)


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """A filter for deliveries; empty and None match all. `undelivered`: ended or tried, and not delivered."""

    states: tuple[str, ...] = ()
    endpoint_id: str | None = None
    job_id: str | None = None
    event_id: str | None = None
    event_types: tuple[str, ...] = ()
    fault: str | None = None
    undelivered: bool = False


@entity
class Replayed:
    """The counts of a replay, made or planned: deliveries that had ended, and events that had none yet."""

    again: int = shown("Deliveries that had ended.")
    missing: int = shown("Events that had no delivery there yet.", name="never_queued")

    def to_json(self) -> dict[str, Any]:
        return {"replayed": self.again + self.missing, **_replayed_to_json(self)}


class ReplayRefused(Exception):
    """The delivery can't be replayed as things are. `code` is stable, `remedy` says what to change."""

    def __init__(self, code: str, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy


_attempt_to_json = json_of(Attempt)
_delivery_to_json = json_of(DeliveryView)
_replayed_to_json = json_of(Replayed)
