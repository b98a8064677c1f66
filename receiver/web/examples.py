"""Example events, for an endpoint's test: in the shape of real events, about things that don't exist."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from receiver.domain.endpoints import Endpoint
from receiver.domain.entity import iso
from receiver.domain.jobs import Job, KeptImage, Source
from submitter.vocabulary import Cost, Failure, State

EXAMPLE_JOB_ID = "job_00000000000000000000example"

_STATES = {
    "job.queued": State.QUEUED,
    "job.running": State.RUNNING,
    "job.failed": State.FAILED,
    "job.expired": State.EXPIRED,
    "job.canceled": State.CANCELED,
    "job.unconfirmed": State.UNCONFIRMED,
    "job.overdue": State.RUNNING,
}


def example_data(event_type: str, endpoint: Endpoint, now: datetime, *, base_url: str = "") -> dict[str, Any]:
    """Return the `data` of an example of *event_type*."""
    if event_type.startswith("endpoint."):
        return endpoint.to_json()
    if event_type == "provider.callbacks_degraded":
        return {"name": "freepik", "lost_callbacks": 0.25, "jobs": 20}
    if event_type.startswith("provider."):
        since = {"reason": "insufficient_credits: this is an example", "since": iso(now)}
        return {"name": "freepik", "paused": since if event_type == "provider.paused" else None}
    return _job(_STATES.get(event_type, State.SUCCEEDED), event_type, now, base_url)


def _job(state: State, event_type: str, now: datetime, base_url: str) -> dict[str, Any]:
    sent_at = None if state is State.QUEUED else now - timedelta(seconds=30)
    done = state is State.SUCCEEDED
    job = Job(
        id=EXAMPLE_JOB_ID,
        provider="freepik",
        state=state,
        version=1,
        created_at=now - timedelta(seconds=31),
        options={"scale_factor": "2x"},
        metadata={"example": True},
        remote_id=None if sent_at is None or state is State.UNCONFIRMED else "00000000-0000-0000-0000-000000000000",
        error=Failure("example", "this is an example", permanent=False) if state is State.FAILED else None,
        cost=Cost(Decimal(10), "credits") if done else None,
        settled_by=Source.CALLBACK if done or state is State.FAILED else None,
        sent_at=sent_at,
        deadline_at=None if sent_at is None else sent_at + timedelta(hours=1),
        finished_at=now if state.terminal else None,
    )
    image = KeptImage(
        job_id=job.id,
        n=0,
        source_url="https://images.example.com/upscaled.png",
        expires_at=now + timedelta(hours=1),
        content_type="image/png",
        width=2048,
        height=2048,
        bytes=4_194_304,
        sha256="0" * 64,
        state={"job.images_kept": "kept", "job.images_lost": "lost"}.get(event_type, "wanted"),
    )
    return job.to_json([image] if done else [], base_url=base_url)
