"""The reason why a job makes no progress."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from receiver.domain.jobs import Job, Reason, WaitingFor, waiting_for
from receiver.domain.pauses import Pause
from submitter.vocabulary import State

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=2)
QUEUED = Job(id="job_1", provider="freepik", state=State.QUEUED, version=1, created_at=NOW, retry_at=LATER)
RUNNING = replace(QUEUED, state=State.RUNNING, remote_id="task-1", next_poll_at=LATER, retry_at=None, tries=1)
PAUSE = Pause("no credit", NOW, LATER, 1)

CASES: list[tuple[Job, dict[str, Any], Pause | None, WaitingFor | None]] = [
    (QUEUED, {}, None, WaitingFor(Reason.RATE_LIMIT)),
    (QUEUED, {}, PAUSE, WaitingFor(Reason.PROVIDER_PAUSED, LATER)),
    (QUEUED, {"tries": 1}, None, WaitingFor(Reason.RETRY, LATER)),
    (QUEUED, {"last_error": "submit: busy"}, None, WaitingFor(Reason.RETRY, LATER)),
    (QUEUED, {"state": State.SENDING}, None, None),
    (RUNNING, {}, None, WaitingFor(Reason.POLL, LATER)),
    (RUNNING, {}, PAUSE, WaitingFor(Reason.POLL, LATER)),
    (RUNNING, {"awaits_callback": True}, None, WaitingFor(Reason.CALLBACK, LATER)),
    (RUNNING, {"awaits_callback": True, "polls": 1}, None, WaitingFor(Reason.POLL, LATER)),
    (RUNNING, {"awaits_callback": True, "hinted_at": NOW}, None, WaitingFor(Reason.POLL, LATER)),
    (RUNNING, {"state": State.UNCONFIRMED, "remote_id": None}, None, None),
    (
        RUNNING,
        {"state": State.UNCONFIRMED, "remote_id": None, "awaits_callback": True},
        None,
        WaitingFor(Reason.CALLBACK, LATER),
    ),
    *((RUNNING, {"state": state, "next_poll_at": None}, PAUSE, None) for state in State if state.terminal),
]


@pytest.mark.parametrize(("job", "changed", "pause", "expected"), CASES)
def test_a_job_says_what_it_waits_for(
    job: Job, changed: dict[str, Any], pause: Pause | None, expected: WaitingFor | None
) -> None:
    assert waiting_for(replace(job, **changed), pause) == expected
