"""Shared by all commands: a connection to the receiver, and values as text."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.status import Status

from submitter.printing import CommandFailed, json_text, rich_console, say
from submitter.sdk.async_client import AsyncClient
from submitter.sdk.link import DEFAULT_TIMEOUT_SECONDS
from submitter.sdk.values import Job
from submitter.shell import Verbosity

__all__ = ["SHORT_TIMEOUT_SECONDS", "CommandFailed", "Connection", "as_text", "job_to_json", "reason", "run"]

T = TypeVar("T")

SHORT_TIMEOUT_SECONDS = 10.0
"""How long a command that shows something or acts once waits for a receiver; those that wait outlast its restart."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The receiver of a command (None: from the environment, a profile or this machine), and its verbosity."""

    url: str | None = None
    profile: str | None = None
    verbosity: Verbosity = field(default_factory=Verbosity)

    def open(self, *, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> AsyncClient:
        """Return a client; without a token, the error says what to set."""
        return AsyncClient(self.url, profile=self.profile, timeout=timeout, on_retry=self._retrying)

    def note(self, text: str) -> None:
        """Print a message apart from the results."""
        if not self.verbosity.quiet:
            say(text, err=True, fg="yellow")

    def status(self, text: str) -> Status:
        """Show the progress in a line on a terminal while a block runs."""
        return rich_console(err=True, quiet=self.verbosity.quiet).status(text)

    def _retrying(self, why: str) -> None:
        if self.verbosity.verbose:
            say(why, err=True, dim=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    return asyncio.run(work)


def as_text(shown: Any) -> str:
    """Return *shown* as JSON for programs."""
    return json_text(shown, default=_plain)


def job_to_json(job: Job, saved: Sequence[Path] = ()) -> dict[str, Any]:
    """Return a job as JSON types, with the files that its results were saved in."""
    return {**job.to_json(), "saved": [str(path) for path in saved]}


def reason(job: Job) -> str:
    """Describe why a job did not succeed, as a sentence."""
    said = f": {job.error.message} ({job.error.code})" if job.error else ""
    return f"{job.id} is {job.state.value}{said}"


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
