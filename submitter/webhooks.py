"""
For applications that receive events: verify the origin of a request, and read the event in it.

    event = unwrap(request.headers, request.body, "whsec_…")

`submitter.contrib` does it for FastAPI, Starlette, Flask and Django.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from submitter.errors import CallbackRefused
from submitter.sdk.event_types import (
    EndpointEvent,
    EndpointEventType,
    Event,
    JobEvent,
    JobEventType,
    ProviderEvent,
    ProviderEventType,
    UnknownEvent,
    parse_event,
)
from submitter.signatures import TOLERANCE_SECONDS, message_id, verify

__all__ = [
    "CallbackRefused",
    "EndpointEvent",
    "EndpointEventType",
    "Event",
    "JobEvent",
    "JobEventType",
    "ProviderEvent",
    "ProviderEventType",
    "UnknownEvent",
    "unwrap",
    "verify",
]

Headers = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str | bytes, str | bytes]]


def unwrap(
    headers: Headers,
    body: bytes,
    secret: str | Sequence[str],
    *,
    now: datetime | None = None,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> Event:
    """
    Verify the signature of a request and return its event; raises `CallbackRefused` if it is invalid.

    *headers* may be any mapping or list of pairs, in any case; *body* is the raw request body, before any parsing;
    *secret* is the endpoint's `whsec_…`, or several during a rotation. Deliveries arrive at least once: skip an event
    whose `id` was handled before. Raises `ValueError` for a malformed *secret*.
    """
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    verify(pairs, body, secret, now=now, tolerance_seconds=tolerance_seconds)
    try:
        return parse_event(bytes(body), event_id=message_id(pairs))
    except ValueError as exc:
        raise CallbackRefused("the body is signed but is not a receiver's event", reason="bad_body") from exc
