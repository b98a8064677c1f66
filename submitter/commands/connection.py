"""What all commands need: a connection to the receiver, and errors that end a command with a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from submitter.errors import SubmitterError
from submitter.printing import json_text
from submitter.remote import Job, Receiver, RequestRefused

T = TypeVar("T")


class CommandFailed(Exception):
    """Ends the command with this sentence and exit status *status*."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the receiver is, and the bearer token it wants."""

    url: str
    token: str | None = field(repr=False)

    def open(self) -> Receiver:
        """A client; `CommandFailed` without a token."""
        if not self.token:
            raise CommandFailed(
                "there is no token; set SUBMITTER_TOKEN to one of the receiver's RECEIVER_API_TOKENS", status=2
            )
        return Receiver(self.url, self.token)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end. What the receiver refuses ends the command; Ctrl-C does with status 130."""
    try:
        return asyncio.run(work)
    except SubmitterError as exc:
        unauthorized = isinstance(exc, RequestRefused) and exc.status == 401
        raise CommandFailed(str(exc), status=2 if unauthorized else 1) from exc
    except KeyboardInterrupt as exc:
        raise CommandFailed("interrupted", status=130) from exc


def as_text(shown: Any) -> str:
    """*shown* as JSON for programs."""
    return json_text(shown, default=_plain)


def job_to_json(job: Job, saved: Sequence[Path] = ()) -> dict[str, Any]:
    """A job, with the files that its results were saved in."""
    return {**job.to_json(), "saved": [str(path) for path in saved]}


def reason(job: Job) -> str:
    """Why a job did not succeed, as a sentence."""
    said = f": {job.error.message} ({job.error.code})" if job.error else ""
    return f"{job.id} is {job.state.value}{said}"


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
