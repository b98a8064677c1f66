"""
The project's vocabulary, as frozen values. Imports none of our modules.

A *task* is a request to a provider. A *report* is the provider's account of it at one time, in our terms. A *callback*
is raw inbound evidence. An *exchange* is a generator that yields requests and is sent responses.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")

Exchange = Generator[httpx.Request, httpx.Response, T]
"""Sans-I/O conversation: yields whole requests, is sent responses, returns its result (as `httpx.Auth.auth_flow`)."""


class State(StrEnum):
    """The state of a job. A provider's report uses only `RUNNING`, `SUCCEEDED` and `FAILED`."""

    QUEUED = "queued"
    SENDING = "sending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"
    UNCONFIRMED = "unconfirmed"

    @property
    def terminal(self) -> bool:
        """Return whether a job in this state has ended; `unconfirmed` has not."""
        return self in _TERMINAL


_TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.EXPIRED, State.CANCELED})


class Trust(StrEnum):
    """The trust in a piece of evidence, strongest first."""

    SIGNED_BODY = "signed_body"
    """The sender signed these bytes with a secret that only the provider and we know."""
    OWN_CALL = "own_call"
    """The answer to a request that we made ourselves, with our key, over TLS."""
    CAPABILITY_TOKEN = "capability_token"
    """The sender knew the job's unguessable URL, nothing more: a hint, never a fact."""


@dataclass(frozen=True, slots=True)
class Image:
    """A result as the provider names it: a link, or the bytes themselves (never both)."""

    url: str | None = None
    expires_at: datetime | None = None
    content_type: str | None = None
    width: int | None = None
    height: int | None = None
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a task failed. `message` is never empty; `permanent`: trying again can't help."""

    code: str
    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a task according to the provider. `unit` is `credits` or `USD`."""

    amount: Decimal
    unit: str

    def __str__(self) -> str:
        return f"{self.amount:f} {self.unit}"


@dataclass(frozen=True, slots=True)
class Report:
    """
    An account of a task at one time.

    `remote_id` is None if the provider has none (a synchronous answer). `remote_status` is the provider's own word, for
    people. A remote status that a provider's table does not list is `RUNNING`. `callback_url` is the URL that the task
    was submitted with, from a provider that echoes it: it identifies the task's job, and is a secret.
    """

    remote_id: str | None
    state: State
    images: tuple[Image, ...] = ()
    error: Failure | None = None
    cost: Cost | None = None
    remote_status: str | None = None
    callback_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Callback:
    """
    An inbound request as received. `headers` keep their order and every duplicate; names are lower case, values are
    the bytes received.
    """

    headers: Sequence[tuple[bytes, bytes]]
    body: bytes = field(repr=False)
    received_at: datetime
    peer: str | None = None

    def header(self, name: str) -> bytes | None:
        """Return the first value of header *name* (lower case), or None."""
        wanted = name.encode("ascii")
        for key, value in self.headers:
            if key == wanted:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Picture:
    """
    An inspected input image. `path` is the local copy (None if only a URL is known); `url` is a public URL of the same
    bytes (None if there is none). Width and height are in pixels, `size` in bytes.
    """

    path: Path | None
    url: str | None
    content_type: str
    width: int
    height: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Task:
    """
    A request to a provider: a picture and options.

    `options` holds only the fields to send, under the provider's own names, already validated by its `Options`;
    `passthrough` is merged into the body as it is.
    """

    picture: Picture
    options: Mapping[str, Any] = field(default_factory=dict)
    passthrough: Mapping[str, Any] = field(default_factory=dict)
