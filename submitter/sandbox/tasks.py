"""The tasks that a sandbox accepted, and its records of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from submitter.sandbox.files import File
from submitter.sandbox.upscaling import Shape, Target


class Failing(Exception):
    """The failure of a task, in the provider's words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Order:
    """
    A submit call that passed every check.

    `source` is the input's bytes, or its URL if the provider fetches it itself. `target` returns the output for an
    input of a given shape; it may raise `Failing`.
    """

    source: bytes | str = field(repr=False)
    target: Callable[[Shape], Target] = field(repr=False)
    options: dict[str, Any]
    callback_url: str | None = field(default=None, repr=False)
    unknown_fields: tuple[str, ...] = ()
    outcome: Literal["succeeded", "failed"] | None = None
    """The end of the task, set by the caller of a test mode."""
    billed: bool = True


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to deliver a callback: an HTTP status, or the kind of error."""

    at: datetime
    status: int | None
    error: str | None


@dataclass(eq=False, slots=True)
class SentCallback:
    """A callback about a state, with all its attempts. A `lost` callback has none."""

    state: str
    kind: Literal["true", "duplicate", "replay", "forged", "lost"]
    attempts: list[Attempt] = field(default_factory=list)
    tried: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set once the first attempt has ended."""
    headers: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(eq=False, slots=True)
class RemoteTask:
    """A task as the provider sees it. It exists from its acceptance on, whether or not the client learns of it."""

    id: str
    provider: str
    order: Order = field(repr=False)
    origin: str
    number: int
    """The task's number at its provider, from 1."""
    accepted_at: datetime
    turnaround_seconds: float
    state: str
    billed: bool
    triggered: bool = False
    finished_at: datetime | None = None
    status_calls: int = 0
    files: list[File] = field(default_factory=list, repr=False)
    failure: Failing | None = None
    callbacks: list[SentCallback] = field(default_factory=list)
    states: list[tuple[str, datetime]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    last_callback: SentCallback | None = field(default=None, repr=False)
    """The last in the queue: the next callback is sent after its first attempt."""
    held: list[Callable[[], None]] | None = field(default=None, repr=False)
    """Callbacks held back for reordering; None: nothing is held."""

    @property
    def options(self) -> dict[str, Any]:
        return self.order.options

    @property
    def callback_url(self) -> str | None:
        return self.order.callback_url

    @property
    def unknown_fields(self) -> tuple[str, ...]:
        return self.order.unknown_fields

    @property
    def callback_attempts(self) -> int:
        """The number of HTTP requests sent for this task's callbacks, forged ones included."""
        return sum(len(callback.attempts) for callback in self.callbacks)

    def enter(self, state: str) -> None:
        self.state = state
        self.states.append((state, datetime.now(UTC)))

    def facts(self) -> dict[str, Any]:
        """Return facts for the control API, without capability URLs and result links."""
        return {
            "id": self.id,
            "provider": self.provider,
            "accepted_at": self.accepted_at.isoformat(),
            "state": self.state,
            "states": [{"state": state, "at": at.isoformat()} for state, at in self.states],
            "options": self.options,
            "unknown_fields": list(self.unknown_fields),
            "billed": self.billed,
            "triggered": self.triggered,
            "wants_callback": self.callback_url is not None,
            "status_calls": self.status_calls,
            "callback_attempts": self.callback_attempts,
            "callbacks": [
                {
                    "state": callback.state,
                    "kind": callback.kind,
                    "attempts": [
                        {"at": attempt.at.isoformat(), "status": attempt.status, "error": attempt.error}
                        for attempt in callback.attempts
                    ],
                }
                for callback in self.callbacks
            ],
            "downloads": sum(file.downloads for file in self.files),
            "failure": None if self.failure is None else {"code": self.failure.code, "message": self.failure.message},
        }


class TaskLog:
    """All tasks of a sandbox, in the order of acceptance."""

    def __init__(self) -> None:
        self.all: list[RemoteTask] = []
        self._by_id: dict[tuple[str, str], RemoteTask] = {}

    def add(self, task: RemoteTask) -> None:
        self.all.append(task)
        self._by_id[task.provider, task.id] = task

    def find(self, provider: str, id: str) -> RemoteTask | None:
        return self._by_id.get((provider, id))

    def clear(self) -> None:
        self.all.clear()
        self._by_id.clear()
