"""The job: our durable record of a task. Values only; `store.py` reads and writes them, `lifecycle.py` moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from submitter.vocabulary import Cost, Failure, State


class Source(StrEnum):
    """The channel that an update came by."""

    CALLBACK = "callback"
    POLL = "poll"
    RESPONSE = "response"


class Verdict(StrEnum):
    """What became of a piece of evidence."""

    RECEIVED = "received"
    """Durable, not yet read."""
    BELIEVED = "believed"
    """It was taken as true; it may still have changed nothing."""
    HINT = "hint"
    """Not trusted enough to change a state: it makes the job's poll due."""
    DUPLICATE = "duplicate"
    """The same delivery, or the same update, again."""
    LATE = "late"
    """The job had already ended."""
    IGNORED = "ignored"
    """It names another task than the job's, or is not about a task."""
    UNREADABLE = "unreadable"
    REFUSED = "refused"
    """It did not prove where it came from."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of `jobs`. `version` counts its changes and decides races; the lease columns belong to `store.py`."""

    id: str
    provider: str
    state: State
    version: int
    created_at: datetime
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notify_url: str | None = None
    remote_id: str | None = None
    remote_status: str | None = None
    claimed_id: str | None = None
    """A task id that only an unsigned callback named, for a job that has none of its own."""
    awaits_callback: bool = False
    input_name: str = ""
    input_url: str | None = None
    error: Failure | None = None
    cost: Cost | None = None
    settled_by: Source | None = None
    tries: int = 0
    retry_at: datetime | None = None
    """When a queued job may be sent (again)."""
    sent_at: datetime | None = None
    next_poll_at: datetime | None = None
    """When its next poll is due; None when it needs none."""
    polled_at: datetime | None = None
    polls: int = 0
    hinted_at: datetime | None = None
    """An unconfirmed claim of its end waits for a poll."""
    deadline_at: datetime | None = None
    overdue_at: datetime | None = None
    late_at: datetime | None = None
    finished_at: datetime | None = None
    last_error: str | None = None
    """The last thing that went wrong on its way, for people."""
    resubmit_of: str | None = None

    def to_json(self, images: Sequence[KeptImage], *, base_url: str = "") -> dict[str, Any]:
        """The public shape of the job, as the API and events carry it."""
        return {
            "id": self.id,
            "provider": self.provider,
            "state": self.state.value,
            "remote_id": self.remote_id,
            "options": dict(self.options),
            "metadata": dict(self.metadata),
            "notify_url": self.notify_url,
            "images": [image.to_json(base_url=base_url) for image in images],
            "error": None
            if self.error is None
            else {"code": self.error.code, "message": self.error.message, "permanent": self.error.permanent},
            "cost": None if self.cost is None else {"amount": format(self.cost.amount, "f"), "unit": self.cost.unit},
            "settled_by": None if self.settled_by is None else self.settled_by.value,
            "resubmit_of": self.resubmit_of,
            "created_at": iso(self.created_at),
            "sent_at": iso(self.sent_at),
            "due_at": iso(self.next_poll_at),
            "deadline_at": iso(self.deadline_at),
            "finished_at": iso(self.finished_at),
        }


@dataclass(frozen=True, slots=True)
class KeptImage:
    """One row of `images`: a result, where it can be fetched, and our copy of it once `kept`."""

    job_id: str
    n: int
    source_url: str | None = field(repr=False)
    expires_at: datetime | None
    content_type: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    state: str = "wanted"
    """`wanted`, `kept` or `lost`."""
    tries: int = 0
    last_error: str | None = None
    """Why the last try failed; of a lost image, why it was given up."""
    renewals: int = 0
    """How often the provider was asked for a fresh link."""
    renewed_at: datetime | None = None
    """When it last named one."""

    @property
    def kept(self) -> bool:
        return self.state == "kept"

    def to_json(self, *, base_url: str = "") -> dict[str, Any]:
        return {
            "url": f"{base_url}/v1/jobs/{self.job_id}/images/{self.n}",
            "source_url": self.source_url,
            "expires_at": iso(self.expires_at),
            "content_type": self.content_type,
            "width": self.width,
            "height": self.height,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "state": self.state,
            "lost_reason": self.last_error if self.state == "lost" else None,
            "kept": self.kept,
        }


def iso(moment: datetime | None) -> str | None:
    """A moment as RFC 3339 in UTC with milliseconds."""
    if moment is None:
        return None
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")[: -len("+00:00")] + "Z"
