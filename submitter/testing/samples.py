"""Signed sample events as a receiver sends them: one of each type, about things that don't exist."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args

from submitter.sdk.event_types import EndpointEventType, JobEventType, ProviderEventType
from submitter.sdk.values import Endpoint, Job, JobImage
from submitter.signatures import signed_headers
from submitter.vocabulary import Cost, Failure, State

EVENT_TYPES: tuple[str, ...] = (*get_args(JobEventType), *get_args(EndpointEventType), *get_args(ProviderEventType))

_STATES = {
    "job.queued": State.QUEUED,
    "job.running": State.RUNNING,
    "job.failed": State.FAILED,
    "job.expired": State.EXPIRED,
    "job.canceled": State.CANCELED,
    "job.unconfirmed": State.UNCONFIRMED,
    "job.overdue": State.RUNNING,
    "job.late_result": State.EXPIRED,
}
_IMAGE_STATES = {"job.images_kept": "kept", "job.images_lost": "lost"}


def sample_event(
    type: str = "job.succeeded",
    secret: str = "whsec_dGhpcyBpcyBhIHNlY3JldCBmb3IgdGVzdHM=",
    *,
    data: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> tuple[dict[str, str], bytes]:
    """
    Return the headers and body of a delivery of *type*, signed with *secret*; *data* replaces fields of the sample.

    Raises `ValueError` for a type that no receiver sends.
    """
    if type not in EVENT_TYPES:
        raise ValueError(f"there is no event {type!r}; use one of {', '.join(EVENT_TYPES)}")
    now = now or datetime.now(UTC)
    document = {"type": type, "timestamp": now.isoformat(), "data": {**_data(type, now), **(data or {})}}
    body = json.dumps(document, separators=(",", ":")).encode()
    headers = signed_headers([secret], f"evt_{secrets.token_hex(13)}", now, body)
    return {"content-type": "application/json", **headers}, body


def _data(type: str, now: datetime) -> dict[str, Any]:
    if type.startswith("job."):
        return _job(type, now).to_json()
    if type.startswith("endpoint."):
        return _endpoint(type, now).to_json()
    if type == "provider.callbacks_degraded":
        return {"name": "freepik", "lost_callbacks": 0.25, "jobs": 20}
    pause = {"reason": "insufficient_credits: this is a sample", "since": now.isoformat()}
    return {"name": "freepik", "paused": pause if type == "provider.paused" else None}


def _job(type: str, now: datetime) -> Job:
    state = _STATES.get(type, State.SUCCEEDED)
    succeeded = state is State.SUCCEEDED
    sent_at = None if state is State.QUEUED else now - timedelta(seconds=30)
    has_images = succeeded or type == "job.late_result"
    return Job(
        id="job_00000000000000000000sample",
        provider="freepik",
        state=state,
        remote_id=None if sent_at is None or state is State.UNCONFIRMED else "00000000-0000-0000-0000-000000000000",
        options={"scale_factor": "2x"},
        metadata={"sample": True},
        images=(_image(_IMAGE_STATES.get(type, "wanted"), now),) if has_images else (),
        error=Failure("sample", "this is a sample", permanent=False) if state is State.FAILED else None,
        cost=Cost(Decimal(10), "credits") if succeeded else None,
        settled_by="callback" if succeeded or state is State.FAILED else None,
        created_at=now - timedelta(seconds=31),
        sent_at=sent_at,
        deadline_at=None if sent_at is None else sent_at + timedelta(hours=1),
        finished_at=now if state.terminal else None,
    )


def _image(state: str, now: datetime) -> JobImage:
    return JobImage(
        url="http://127.0.0.1:8000/v1/jobs/job_00000000000000000000sample/images/0",
        source_url="https://images.example.com/upscaled.png",
        expires_at=now + timedelta(hours=1),
        content_type="image/png",
        width=2048,
        height=2048,
        bytes=4_194_304,
        sha256="0" * 64,
        state=state,
        lost_reason="the link had expired" if state == "lost" else None,
        kept=state == "kept",
    )


def _endpoint(type: str, now: datetime) -> Endpoint:
    disabled = type == "endpoint.disabled"
    return Endpoint(
        id="ep_00000000000000000000sample",
        url="https://example.com/hooks",
        enabled=not disabled,
        timeout_seconds=15.0,
        concurrency=10,
        failing_since=now - timedelta(hours=1),
        disabled_reason="it answered 410 Gone" if disabled else None,
        created_at=now - timedelta(days=1),
    )
