"""The job, our durable record of a task, and its images. Values only: `store` keeps, `lifecycle` changes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from receiver.domain.entity import entity, json_of, shown, stored
from receiver.domain.pauses import Pause
from submitter.vocabulary import Cost, Failure, State


class Source(StrEnum):
    """The channel that an update came by."""

    CALLBACK = "callback"
    POLL = "poll"
    RESPONSE = "response"


class Verdict(StrEnum):
    """The outcome of reading a piece of evidence."""

    RECEIVED = "received"
    """Durable, not yet read."""
    BELIEVED = "believed"
    """Accepted as true; it may still have changed nothing."""
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
    """Its origin was not proven."""


@entity
class InputImage:
    """The image that a job upscales, as far as it is known."""

    file_name: str | None = shown("As it was uploaded, or the last part of its URL.", default=None)
    width: int | None = shown("In pixels.", default=None)
    height: int | None = shown("In pixels.", default=None)
    bytes: int | None = shown("Its size.", default=None, big=True)


@entity
class Job:
    """
    One row of `jobs`; `version` counts its changes and decides races. Leases belong to `store.leases`.

    A field declared here has its column (a migration adds it), its place in rows, and, if it is `shown`, in the API's
    answers, in events, in the OpenAPI description and in the SDK.
    """

    id: str = shown(identifier=True)
    provider: str = shown(length=32)
    state: State = shown()
    version: int = stored()
    created_at: datetime = shown()
    options: Mapping[str, Any] = shown("As they were given, by the provider's own names.", default_factory=dict)
    metadata: Mapping[str, Any] = shown("As it was given; not sent to the provider.", default_factory=dict)
    notify_url: str | None = shown("Notified when the job ends.", default=None)
    remote_id: str | None = shown("The provider's id of the task.", default=None)
    remote_status: str | None = stored(default=None)
    claimed_id: str | None = stored(default=None)
    """A task id that only an unsigned callback named, for a job that has none of its own."""
    awaits_callback: bool = stored(default=False)
    input_name: str = stored(default="")
    """The name of our copy of the input."""
    input_url: str | None = stored(default=None)
    input: InputImage = shown("The image to upscale.", default=InputImage())
    error: Failure | None = shown(default=None, parts={"message": {"schema": {"minLength": 1}}})
    cost: Cost | None = shown(
        "What the provider charged, where it says so.",
        default=None,
        parts={
            "amount": {"schema": {"examples": ["10"]}},
            "unit": {"length": 16, "schema": {"enum": ["credits", "USD"]}},
        },
    )
    settled_by: Source | None = shown("The channel that brought the result.", default=None)
    resubmit_of: str | None = shown("The job that this one repeats.", default=None, identifier=True)
    tries: int = stored(default=0)
    retry_at: datetime | None = stored(default=None)
    """When a queued job may be sent (again)."""
    sent_at: datetime | None = shown(default=None)
    next_poll_at: datetime | None = shown("When its next status call is due.", name="due_at", default=None)
    """None where no poll is needed."""
    polled_at: datetime | None = shown("When its last status call ended.", default=None)
    polls: int = stored(default=0)
    hinted_at: datetime | None = stored(default=None)
    """Set while an unconfirmed claim that the job ended waits for a poll."""
    deadline_at: datetime | None = shown("When it expires.", default=None)
    overdue_at: datetime | None = stored(default=None)
    late_at: datetime | None = stored(default=None)
    finished_at: datetime | None = shown(default=None)
    last_error: str | None = stored(default=None)
    """The last thing that went wrong on its way, for people."""

    def to_json(self, images: Sequence[KeptImage], *, base_url: str = "", pause: Pause | None = None) -> dict[str, Any]:
        """The public shape of the job, as the API and events carry it; *pause* is that of its provider."""
        waiting = waiting_for(self, pause)
        document = _job_to_json(self)
        document["images"] = [image.to_json(base_url=base_url) | enlargement(self, image) for image in images]
        document["waiting_for"] = None if waiting is None else _waiting_to_json(waiting)
        return document


class Reason(StrEnum):
    """The reason why a job makes no progress."""

    RATE_LIMIT = "rate_limit"
    """It is queued, and is sent as soon as its provider's rate and concurrency admit it."""
    PROVIDER_PAUSED = "provider_paused"
    RETRY = "retry"
    """The provider did not accept it: it is sent again."""
    CALLBACK = "callback"
    """It was sent, and its callback has not arrived."""
    POLL = "poll"
    """The next status call will ask for its state."""


@entity
class WaitingFor:
    """The condition that a job waits for."""

    reason: Reason = shown()
    until: datetime | None = shown("Null if unknown. A time in the past: imminent.", default=None)


def waiting_for(job: Job, pause: Pause | None = None) -> WaitingFor | None:
    """Return why *job* makes no progress; None while a call for it is under way, and once nothing more is expected."""
    if job.state is State.QUEUED:
        if pause is not None:
            return WaitingFor(Reason.PROVIDER_PAUSED, None if pause.by_operator else pause.probe_at)
        if job.tries or job.last_error is not None:
            return WaitingFor(Reason.RETRY, job.retry_at)
        return WaitingFor(Reason.RATE_LIMIT)
    if job.state not in (State.RUNNING, State.UNCONFIRMED):
        return None
    task_known = job.remote_id is not None or job.claimed_id is not None
    if job.awaits_callback and (not task_known or (job.polls == 0 and job.hinted_at is None)):
        return WaitingFor(Reason.CALLBACK, job.next_poll_at)
    return WaitingFor(Reason.POLL, job.next_poll_at) if task_known and job.next_poll_at is not None else None


DEAD_LINK = "its link is dead"
"""The reason for a lost image of which no other is known."""
_SHORT_OF_SCALE = 0.9
"""Encoders crop a few pixels and models round; a result this far below what was asked for was not upscaled to it."""


def enlargement(job: Job, image: KeptImage) -> dict[str, Any]:
    """
    Return how many times larger *image* is than the job's input, and whether that is the scale that was asked for.

    `upscaled` is false for a result that is no larger than its input, or clearly smaller than the scale that the job's
    options name; both are null where a size is not known.
    """
    given, asked = job.input, _asked_scale(job.options)
    if not (given.width and given.height and image.width and image.height):
        return {"scale": None, "upscaled": None}
    # A result may be turned by its input's EXIF orientation: the areas are compared, not the sides.
    scale = math.sqrt(image.width * image.height / (given.width * given.height))
    upscaled = scale >= _SHORT_OF_SCALE * asked if asked is not None else scale > 1
    return {"scale": round(scale, 2), "upscaled": upscaled}


def _asked_scale(options: Mapping[str, Any]) -> float | None:
    """Return the scale that a caller asked for, under either of the providers' names: a number, or text such as 4x."""
    asked = options.get("scale_factor", options.get("scale"))
    if isinstance(asked, str) and re.fullmatch(r"\d{1,3}(\.\d{1,3})?x?", asked):
        asked = float(asked.removesuffix("x"))
    return float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) and asked > 0 else None


def lost_reason(job: Job, images: Sequence[KeptImage]) -> str | None:
    """Return why results of a task that was paid for are not all kept; None if no image was given up."""
    reasons = [image.lost_reason for image in images if image.lost_reason is not None]
    if reasons:
        return "; ".join(dict.fromkeys(reasons))
    return job.error.message if not images and job.error is not None else None


@entity
class KeptImage:
    """One row of `images`: a result, where it can be fetched, and our copy of it once `kept`."""

    job_id: str = stored(identifier=True)
    n: int = stored()
    source_url: str | None = shown("The provider's link; valid until `expires_at`.", repr=False)
    expires_at: datetime | None = shown("When `source_url` expires.")
    content_type: str | None = shown(default=None)
    width: int | None = shown(default=None)
    height: int | None = shown(default=None)
    bytes: int | None = shown(default=None, big=True)
    sha256: str | None = shown(default=None, length=64)
    state: str = shown(
        "`wanted`: being fetched; `kept`: served at `url`; `lost`: no longer available;"
        " `removed`: it was kept, and removed after `KEEP_IMAGES_DAYS`.",
        default="wanted",
        length=8,
        schema={"enum": ["wanted", "kept", "lost", "removed"]},
    )
    tries: int = stored(default=0)
    last_error: str | None = stored(default=None)
    """Why the last try failed; of a lost image, why it was given up."""
    renewals: int = stored(default=0)
    """The number of times that the provider was asked for a fresh link."""
    renewed_at: datetime | None = stored(default=None)
    """The time when it last gave a fresh link."""

    @property
    def kept(self) -> bool:
        return self.state == "kept"

    @property
    def lost_reason(self) -> str | None:
        """Return why it is no longer available; None unless it is lost."""
        return (self.last_error or DEAD_LINK) if self.state == "lost" else None

    def to_json(self, *, base_url: str = "") -> dict[str, Any]:
        url = f"{base_url}/v1/jobs/{self.job_id}/images/{self.n}"
        return {"url": url, **_image_to_json(self), "lost_reason": self.lost_reason, "kept": self.kept}


_job_to_json = json_of(Job)
_waiting_to_json = json_of(WaitingFor)
_image_to_json = json_of(KeptImage)
