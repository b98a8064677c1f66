"""A poll that a person asks for: within seconds, never sooner than allowed, and never later than it was due anyway."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from receiver.domain.jobs import Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.store.settling import JobUpdate
from submitter.vocabulary import Report, State
from tests.support.upstream_loops import Loops, loops

SECOND = timedelta(seconds=1)
HOURLY = Timing(3600, 3600, 3600)
APART_SECONDS = 5.0


async def running_job(running: Loops, *, polled: bool) -> str:
    (job_id,) = await running.add("upscayl")
    report = Report("task-0", State.RUNNING)
    updates = [Update(report, Source.RESPONSE)]
    if polled:
        updates.append(Update(report, Source.POLL, asked_at=running.clock()))
    for update in updates:
        await running.store.settle([JobUpdate(job_id, update)], running.clock(), lambda name: HOURLY)
    return job_id


async def asked(running: Loops, job_id: str) -> datetime | None:
    assert await running.store.leases.poll_now(job_id, running.clock(), apart_seconds=APART_SECONDS)
    found = await running.store.job(job_id)
    assert found is not None
    return found[0].next_poll_at


async def test_a_job_that_was_never_polled_is_polled_at_once_and_keeps_its_place(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None) as running:
        job_id = await running_job(running, polled=False)
        first = running.clock()
        assert await asked(running, job_id) == first
        running.clock.now += 30 * SECOND
        assert await asked(running, job_id) == first  # asked again while it waits for its turn


async def test_asking_often_neither_hastens_nor_delays_the_poll(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None) as running:
        job_id = await running_job(running, polled=True)
        polled_at = running.clock()
        for _ in range(4):
            running.clock.now += SECOND
            assert await asked(running, job_id) == polled_at + timedelta(seconds=APART_SECONDS)


async def test_a_clock_that_was_put_back_delays_no_poll_that_is_asked_for(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None) as running:
        job_id = await running_job(running, polled=True)
        running.clock.now -= timedelta(hours=1)
        assert await asked(running, job_id) == running.clock()
