"""What a receiver says, as frozen values: jobs, their images, events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from submitter.vocabulary import Cost, Failure, State


@dataclass(frozen=True, slots=True)
class JobImage:
    """A result. `url` is the receiver's copy, there once `kept`; `source_url` the provider's, while it lives."""

    url: str
    source_url: str | None = field(repr=False)
    expires_at: datetime | None
    content_type: str | None
    width: int | None
    height: int | None
    bytes: int | None
    sha256: str | None
    kept: bool

    @classmethod
    def from_json(cls, shown: Mapping[str, Any]) -> JobImage:
        return cls(
            url=shown["url"],
            source_url=shown.get("source_url"),
            expires_at=_moment(shown.get("expires_at")),
            content_type=shown.get("content_type"),
            width=shown.get("width"),
            height=shown.get("height"),
            bytes=shown.get("bytes"),
            sha256=shown.get("sha256"),
            kept=bool(shown.get("kept")),
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the receiver shows it."""

    id: str
    provider: str
    state: State
    remote_id: str | None
    options: Mapping[str, Any]
    metadata: Mapping[str, Any]
    notify_url: str | None = field(repr=False)
    images: tuple[JobImage, ...]
    error: Failure | None
    cost: Cost | None
    settled_by: str | None
    resubmit_of: str | None
    created_at: datetime
    sent_at: datetime | None
    due_at: datetime | None
    deadline_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Nothing more is to be waited for: it is over, or `unconfirmed` and needs a person."""
        return self.state.terminal or self.state is State.UNCONFIRMED

    @property
    def succeeded(self) -> bool:
        return self.state is State.SUCCEEDED

    @classmethod
    def from_json(cls, shown: Mapping[str, Any]) -> Job:
        error, cost = shown.get("error"), shown.get("cost")
        created_at = _moment(shown["created_at"])
        assert created_at is not None
        return cls(
            id=shown["id"],
            provider=shown["provider"],
            state=State(shown["state"]),
            remote_id=shown.get("remote_id"),
            options=shown.get("options") or {},
            metadata=shown.get("metadata") or {},
            notify_url=shown.get("notify_url"),
            images=tuple(JobImage.from_json(image) for image in shown.get("images") or ()),
            error=error and Failure(error["code"], error["message"], error["permanent"]),
            cost=cost and Cost(Decimal(cost["amount"]), cost["unit"]),
            settled_by=shown.get("settled_by"),
            resubmit_of=shown.get("resubmit_of"),
            created_at=created_at,
            sent_at=_moment(shown.get("sent_at")),
            due_at=_moment(shown.get("due_at")),
            deadline_at=_moment(shown.get("deadline_at")),
            finished_at=_moment(shown.get("finished_at")),
        )


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that happened. `id` is the same in deliveries; `job` is set where it is about one.

    `body` is the very text that endpoints are sent.
    """

    position: int
    id: str
    type: str
    timestamp: datetime
    data: Mapping[str, Any] = field(repr=False)
    body: str = field(default="", repr=False)

    @property
    def job(self) -> Job | None:
        return Job.from_json(self.data) if self.type.startswith("job.") else None

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Event:
        """From the fields of a server-sent event."""
        body = json.loads(fields["data"])
        timestamp = _moment(body["timestamp"])
        assert timestamp is not None
        return cls(
            position=int(fields["id"]),
            id=fields.get("webhook-id", ""),
            type=body["type"],
            timestamp=timestamp,
            data=body["data"],
            body=fields["data"],
        )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
