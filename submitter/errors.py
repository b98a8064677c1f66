"""
Errors of calls to providers and to a receiver, split by what the caller does about them.

    SubmitterError
    ├── TaskRefused            the task can't be sent as it is: caller's fault, nothing was sent
    ├── CallbackRefused        an inbound callback does not come from where it claims to
    ├── CallbackUnreadable     a callback's bytes can't be parsed
    ├── ProviderError          a provider's answer to one of our calls
    │   ├── ProviderRefused    it refused; `permanent`: trying again can't help
    │   ├── ProviderBusy       not now (429, 503, ...): certainly not accepted, send again
    │   ├── AccountRefused     key or credit: no job of this provider can go on until an operator acts
    │   ├── NotSent            the request certainly did not arrive whole: send again
    │   ├── AnswerLost         it may or may not have been accepted: never send again automatically
    │   └── TaskNotFound       a status call names a task that the provider does not know
    └── ReceiverError          a call of `Client` or `AsyncClient` to a receiver
        ├── RequestRefused     it refused
        │   ├── Unauthorized   no token, or a wrong one: log in, or set SUBMITTER_TOKEN
        │   ├── NotFound       there is no such job, image, endpoint or delivery
        │   ├── Invalid        the request is wrong: `field` and `remedy` say what to change
        │   ├── Conflict       not possible in the current state
        │   └── Overloaded     not now, after all retries: try again later
        ├── NoReceiver         no answer, or not a receiver's, after all retries
        └── JobFailed          the call succeeded, but the job has no image
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from submitter.sdk.values import Job


class SubmitterError(Exception):
    """Base of everything that this package raises on purpose. `str(error)` says what to change."""


class TaskRefused(SubmitterError):
    """The task can't be sent as it is. `field` is a JSON-pointer-like path (`options.scale`, `image`)."""

    def __init__(self, message: str, *, field: str, code: str = "invalid_task") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class CallbackRefused(SubmitterError):
    """The callback's origin is not proven. `reason` is a short stable word for logs and metrics."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CallbackUnreadable(SubmitterError):
    """The callback's body is not what this provider sends. The message never quotes the body."""


class ProviderError(SubmitterError):
    """
    A call to a provider failed.

    `code` is the provider's own code if it gave any, else `http_<status>` or our own. `permanent`: the same call can
    never succeed; `retry_after_seconds` is the pause that the provider asks for, or None. `remote_id` is the accepted,
    paid task, if it is known: its result can still be fetched with it.
    """

    permanent = False
    remote_id: str | None = None

    def __init__(
        self, message: str, *, code: str, permanent: bool | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message or code)
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        if permanent is not None:
            self.permanent = permanent

    def about(self, remote_id: str) -> Self:
        """Return this error with the task that it is about."""
        if self.remote_id is None:
            self.remote_id = remote_id
            self.args = (f"task {remote_id}: {self}",)
        return self


class ProviderRefused(ProviderError):
    """A definite refusal. Submitting: the job fails. `permanent=False`: a person may try again."""

    permanent = True


class ProviderBusy(ProviderError):
    """Not now; certainly not accepted. `tries`: give up after that many (None: never)."""

    def __init__(
        self, message: str, *, code: str, retry_after_seconds: float | None = None, tries: int | None = None
    ) -> None:
        super().__init__(message, code=code, retry_after_seconds=retry_after_seconds)
        self.tries = tries


class AccountRefused(ProviderError):
    """Key, permission or balance. The provider is paused until a probe or an operator resumes it."""


class NotSent(ProviderError):
    """The request certainly did not arrive whole (no connection, or the body was cut off while being written)."""


class AnswerLost(ProviderError):
    """Timeout, reset, 502, 504, or an unreadable 2xx: it may be running, and billed."""


class TaskNotFound(ProviderError):
    """The provider does not know the task named in a status call."""


class ReceiverError(SubmitterError):
    """
    A call to a receiver failed.

    `code` is stable, `field` names what is wrong in the request, `remedy` says what to change, and `request_id` finds
    the call in the receiver's log. Each may be None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        field: str | None = None,
        remedy: str | None = None,
        request_id: str | None = None,
    ) -> None:
        between = " " if message.endswith("?") else "; "
        super().__init__(f"{message}{between}{remedy}" if remedy else message)
        self.code = code
        self.field = field
        self.remedy = remedy
        self.request_id = request_id


class RequestRefused(ReceiverError):
    """The receiver refused, with HTTP *status*. `problem` is its whole answer, as in RFC 9457."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int = 0,
        problem: Mapping[str, Any] | None = None,
        field: str | None = None,
        remedy: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{message} ({code})", code=code, field=field, remedy=remedy, request_id=request_id)
        self.detail = message
        self.status = status
        self.problem: Mapping[str, Any] = problem or {}


class Unauthorized(RequestRefused):
    """There is no token, the receiver does not know it, or it may not do this (401, 403)."""


class NotFound(RequestRefused):
    """The job, image, endpoint or delivery does not exist (404, 410)."""


class Invalid(RequestRefused):
    """The request can't be carried out as it is, however often it is sent (400, 413, 415, 422)."""


class Conflict(RequestRefused):
    """The request conflicts with the current state of the job, endpoint, delivery or event log (409)."""


class Overloaded(RequestRefused):
    """The receiver was overloaded (429, 503) for as long as the call was retried."""

    retry_after_seconds: float | None = None


class NoReceiver(ReceiverError):
    """No answer, or not a receiver's, for as long as the call was retried."""

    def __init__(
        self, message: str, *, code: str = "no_receiver", remedy: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message, code=code, remedy=remedy, request_id=request_id)


class JobFailed(ReceiverError):
    """A job ended without the requested images. `job` is its last state; `code` is its error's code."""

    def __init__(self, message: str, *, code: str, job: Job, remedy: str | None = None) -> None:
        super().__init__(message, code=code, remedy=remedy)
        self.job = job
