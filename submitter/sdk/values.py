"""
A receiver's answers as frozen values: jobs, images, evidence, endpoints, deliveries, providers.

Fields that a newer receiver adds are kept: they are attributes and items of the value (`job["colour"]`) and part of
`to_json()`. Fields that an older one lacks have their default. Times are aware datetimes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from submitter.vocabulary import Cost, Failure, State


class Value(BaseModel):
    """A JSON object of the API."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def __getitem__(self, name: str) -> Any:
        """The field called *name*, known here or not; `KeyError` if the receiver did not send it."""
        if name in type(self).model_fields or name in (self.model_extra or {}):
            return getattr(self, name)
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """The value as JSON types, with the fields unknown here."""
        return self.model_dump(mode="json")


class JobImage(Value):
    """A result. `url` is the receiver's copy, available once `kept`; `source_url` is the provider's link."""

    url: str
    source_url: str | None = Field(None, repr=False)
    expires_at: datetime | None = None
    content_type: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    state: str = "wanted"
    """
    `wanted`: being fetched; `kept`: the receiver has it; `lost`: no longer available, see `lost_reason`; `removed`: the
    receiver had it, and removed it at the age that its operator set.
    """
    lost_reason: str | None = None
    scale: float | None = None
    """The factor by which it is larger than the input."""
    upscaled: bool | None = None
    """Whether it is as much larger as requested; None if a size is unknown."""
    kept: bool = False

    @model_validator(mode="before")
    @classmethod
    def _state_of_older_receivers(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "state" not in fields and fields.get("kept"):
            return {**fields, "state": "kept"}
        return fields


class JobInput(Value):
    """A job's input image; `bytes` is its size."""

    file_name: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None


class WaitingFor(Value):
    """The reason why a job makes no progress, and until when, if that is known."""

    reason: str
    until: datetime | None = None


class Job(Value):
    """A job as the receiver shows it."""

    id: str
    provider: str
    state: State
    remote_id: str | None = None
    options: Mapping[str, Any] = Field(default_factory=dict)
    metadata: Mapping[str, Any] = Field(default_factory=dict)
    notify_url: str | None = Field(None, repr=False)
    images: tuple[JobImage, ...] = ()
    error: Failure | None = None
    cost: Cost | None = None
    settled_by: str | None = None
    resubmit_of: str | None = None
    input: JobInput | None = None
    waiting_for: WaitingFor | None = None
    created_at: datetime
    sent_at: datetime | None = None
    due_at: datetime | None = None
    polled_at: datetime | None = None
    """When the last status call for it ended."""
    deadline_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Return whether waiting is pointless: the job has finished, or is `unconfirmed` and needs a person."""
        return self.state.terminal or self.state is State.UNCONFIRMED

    @property
    def succeeded(self) -> bool:
        """Return whether it ended with a result; its images may still be `wanted`."""
        return self.state is State.SUCCEEDED


class Evidence(Value):
    """A callback, poll answer or submit answer as it was received, with secrets masked."""

    id: int | str
    source: str
    verdict: str
    trust: str | None = None
    received_at: datetime
    read_at: datetime | None = None
    status: int | None = None
    peer: str | None = None
    note: str | None = None
    headers: tuple[tuple[str, str], ...] = Field((), repr=False)
    body: str | None = Field(None, repr=False)
    body_base64: str | None = Field(None, repr=False)
    """The body if it is not UTF-8; then `body` is None."""


class Endpoint(Value):
    """A subscriber's URL. `secret` is set in the answers that create or rotate it, and never again."""

    id: str
    url: str
    event_types: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    description: str = ""
    enabled: bool = True
    timeout_seconds: float | None = None
    concurrency: int | None = None
    rate: str | None = None
    failing_since: datetime | None = None
    disabled_reason: str | None = None
    created_at: datetime | None = None
    secret: str | None = Field(None, repr=False)
    old_secrets_sign_until: datetime | None = None


class Attempt(Value):
    """An attempt of a delivery."""

    started_at: datetime
    seconds: float
    status: int | None = None
    answer: str | None = Field(None, repr=False)
    error: str | None = None


class Delivery(Value):
    """One event for one endpoint, or for a job's `notify_url`. Only a single delivery includes its `attempts`."""

    id: str
    event_id: str
    event_type: str
    job_id: str | None = None
    endpoint_id: str | None = None
    url: str | None = Field(None, repr=False)
    state: str
    tries: int = 0
    example: bool = False
    next_at: datetime | None = None
    created_at: datetime
    finished_at: datetime | None = None
    last_status: int | None = None
    last_error: str | None = None
    fault: str | None = None
    attempts: tuple[Attempt, ...] = ()


class Replayed(Value):
    """The number of deliveries that a bulk replay queued: tried before, and never queued before."""

    replayed: int
    again: int = 0
    never_queued: int = 0
    dry_run: bool = False


class Pause(Value):
    """The reason why a provider is paused, and since when."""

    reason: str
    since: datetime | None = None


class Capabilities(Value):
    """The capabilities of a provider."""

    callbacks: bool = False
    pollable: bool = False
    wants_url: bool = False
    takes_files: bool = True
    """False: it takes images by URL only, and the receiver has no public URL to serve files at."""
    trust: str | None = None


class Queue(Value):
    """Jobs that wait to be sent to a provider."""

    length: int = 0
    done_in_seconds: float | None = None
    done_at: datetime | None = None


class ProviderInfo(Value):
    """A provider of the receiver. `options` is the JSON Schema of a job's options."""

    name: str
    title: str = ""
    configured: bool = False
    capabilities: Capabilities = Capabilities()
    options: Mapping[str, Any] = Field(default_factory=dict, repr=False)
    paused: Pause | None = None
    queue: Queue = Queue()
    health: Mapping[str, Any] = Field(default_factory=dict)
    spend: Sequence[Mapping[str, Any]] = ()


class ProviderNotice(Value):
    """The subject of a `provider.…` event: its pause, or the share of lost callbacks among its last *jobs*."""

    name: str
    paused: Pause | None = None
    lost_callbacks: float | None = None
    jobs: int | None = None


class Health(Value):
    """The readiness of the receiver, and the result of each of its checks."""

    status: str
    checks: Mapping[str, str] = Field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Return whether every check passed."""
        return self.status == "ready"


DeliveryState = Literal["given_up", "delivered", "all"]
