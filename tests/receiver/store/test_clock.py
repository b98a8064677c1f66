"""A clock that is set back by an hour: what was due is due by the new time, whoever runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from receiver.store.clock import ClockRecord
from receiver.store.database import Database
from submitter.vocabulary import State
from tests.support.rows import execute, fetch
from tests.support.running_receiver import running_receiver

HOUR = timedelta(hours=1)


async def test_polls_and_deliveries_that_were_due_in_a_second_do_not_wait_an_hour(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        now = datetime.now(UTC)
        # As a life of an hour ahead left them: due in a moment of its time.
        job = await here.job("novita", next_poll_at=now + HOUR + timedelta(seconds=1), notify_url="https://x.invalid/")
        waiting = await here.job("novita", State.QUEUED, retry_at=now + HOUR + timedelta(seconds=1))
        here.upstream.says[job.remote_id or ""] = "COMPLETED"
        database = here.receiver.parts.database
        await execute(database, "UPDATE deliveries SET next_at = ?", int((now + HOUR).timestamp() * 1_000_000))
        await execute(database, "UPDATE clock SET seen_at = ?", int((now + HOUR).timestamp() * 1_000_000))
        assert (await here.now(job)).state is State.RUNNING
        clock = ClockRecord(database)
        steps = await asyncio.gather(*(clock.beat(now) for _ in range(4)))
        (step,) = [step for step in steps if step is not None]
        assert HOUR - timedelta(seconds=1) <= step <= HOUR + timedelta(seconds=1)
        await here.becomes(job, State.SUCCEEDED)
        moved = await here.now(waiting)
        if moved.retry_at is not None:
            assert moved.retry_at < now + timedelta(minutes=10)
        for (next_at,) in await fetch(database, "SELECT next_at FROM deliveries WHERE state = 'pending'"):
            assert next_at < (now + timedelta(minutes=10)).timestamp() * 1_000_000


async def test_small_differences_and_steps_forward_move_nothing(database: Database) -> None:
    clock, now = ClockRecord(database), datetime.now(UTC)
    assert await clock.beat(now) is None
    for seconds in (-1, -60, -119, 1, 7200, 7190):
        assert await clock.beat(now + timedelta(seconds=seconds)) is None
    assert await clock.beat(now) == timedelta(seconds=7200)
    assert await clock.beat(now) is None
