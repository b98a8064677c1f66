"""
Events as typed values: `JobEvent`, `EndpointEvent`, `ProviderEvent`, and `UnknownEvent` for types of newer receivers.

    match event:
        case JobEvent(type="job.succeeded"):
            save(event.data.images)

Type checkers narrow by `type` too: after `if event.type == "job.failed"`, `event.data` is a `Job`.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal, TypeAlias

from pydantic import Field, SkipValidation

from submitter.sdk.values import Endpoint, Job, ProviderNotice, Value

JobEventType = Literal[
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
]
EndpointEventType = Literal["endpoint.failing", "endpoint.disabled"]
ProviderEventType = Literal["provider.paused", "provider.resumed", "provider.callbacks_degraded"]


class _Event(Value):
    id: str
    """The same on every try, and in the stream: use it to recognize an event that was handled before."""
    timestamp: datetime
    position: int | None = None
    """The position of the event in the receiver's log; None in a webhook, which does not carry it."""
    body: str = Field("", repr=False)
    """The JSON text that endpoints are sent."""

    @property
    def job(self) -> Job | None:
        """The job that the event is about, None if it is about something else."""
        return None


class JobEvent(_Event):
    """Something that happened to a job; `data` is the job as it was then."""

    type: SkipValidation[JobEventType]
    data: Job

    @property
    def job(self) -> Job:
        """The job, as `data`."""
        return self.data


class EndpointEvent(_Event):
    """An endpoint fails, or was disabled for it."""

    type: SkipValidation[EndpointEventType]
    data: Endpoint


class ProviderEvent(_Event):
    """A provider was paused or resumed, or its callbacks get lost."""

    type: SkipValidation[ProviderEventType]
    data: ProviderNotice


class UnknownEvent(_Event):
    """An event of a family that this version does not know; `data` is its JSON."""

    type: SkipValidation[Literal["unknown"]]
    """The name that the receiver gave it. Declared as a literal, since with a `str` type checkers could not distinguish
    the other families by theirs."""
    data: Any


Event: TypeAlias = JobEvent | EndpointEvent | ProviderEvent | UnknownEvent

_FAMILIES: dict[str, type[JobEvent] | type[EndpointEvent] | type[ProviderEvent]] = {
    "job": JobEvent,
    "endpoint": EndpointEvent,
    "provider": ProviderEvent,
}


def parse_event(body: str | bytes, *, event_id: str, position: int | None = None) -> Event:
    """Parse the event in *body*, `{"type", "timestamp", "data"}`. Raises `ValueError` and nothing else."""
    text = body if isinstance(body, str) else body.decode("utf-8")
    try:
        document = json.loads(text)
    except RecursionError as exc:
        raise ValueError("the body is nested too deeply") from exc
    if not isinstance(document, dict) or not isinstance(document.get("type"), str):
        raise ValueError("the body is not an event")
    family = document["type"].partition(".")[0]
    fields = {**document, "id": event_id, "position": position, "body": text}
    return _FAMILIES.get(family, UnknownEvent).model_validate(fields)
