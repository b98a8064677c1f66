"""
What can go wrong while speaking to a provider, split by what the catcher does about it.

    SubmitterError
    ├── TaskRefused            the task can't be sent as it is: caller's fault, nothing was sent
    ├── CallbackRefused        an inbound callback does not come from where it claims to
    ├── CallbackUnreadable     a callback's bytes make no sense
    └── ProviderError          a provider's answer to one of our calls
        ├── ProviderRefused    it said no; `permanent` tells whether asking again can help
        ├── ProviderBusy       it said later (429, 503, ...): surely not accepted, send again
        ├── AccountRefused     key or credit: no job of this provider can go on until an operator acts
        ├── NotSent            the request surely did not arrive whole: send again
        ├── AnswerLost         it may or may not have been accepted: never send again by ourselves
        └── TaskNotFound       a status call names a task that the provider does not know
"""

from __future__ import annotations


class SubmitterError(Exception):
    """Base of everything this package raises on purpose. `str(error)` tells the reader what to change."""


class TaskRefused(SubmitterError):
    """The task can't be sent as it is. `field` is a JSON-pointer-like path (`options.scale`, `image`)."""

    def __init__(self, message: str, *, field: str, code: str = "invalid_task") -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class CallbackRefused(SubmitterError):
    """The callback did not prove where it comes from. `reason` is a short stable word for logs and metrics."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CallbackUnreadable(SubmitterError):
    """The callback's body is not what this provider sends. The message never quotes the body."""


class ProviderError(SubmitterError):
    """
    A call to a provider did not give what was asked for.

    `code` is the provider's own word where it gave one, else `http_<status>` or one of ours. `permanent` tells
    whether the same call can ever succeed; `retry_after_seconds` is the provider's wish, or None.
    """

    permanent = False

    def __init__(
        self, message: str, *, code: str, permanent: bool | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message or code)
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        if permanent is not None:
            self.permanent = permanent


class ProviderRefused(ProviderError):
    """A refusal in words that settle it. Submitting: the job fails. `permanent=False`: a person may try again."""

    permanent = True


class ProviderBusy(ProviderError):
    """Not now; surely not accepted. `tries`: give up after that many (None: go on for ever)."""

    def __init__(
        self, message: str, *, code: str, retry_after_seconds: float | None = None, tries: int | None = None
    ) -> None:
        super().__init__(message, code=code, retry_after_seconds=retry_after_seconds)
        self.tries = tries


class AccountRefused(ProviderError):
    """Key, permission or balance. The provider is paused until a probe or an operator says otherwise."""


class NotSent(ProviderError):
    """The request surely did not arrive whole (no connection, or the body was cut while we wrote it)."""


class AnswerLost(ProviderError):
    """Timeout, reset, 502, 504, or an unreadable 2xx: it may be running, and billed."""


class TaskNotFound(ProviderError):
    """The provider does not know the task named in a status call."""
