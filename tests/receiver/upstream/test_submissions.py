"""From the queue to the provider: claims, cancellations, and what a late word may still do."""

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from receiver.domain.jobs import Source
from receiver.store.jobs import JobStore
from receiver.store.leases import LEASE
from submitter.vocabulary import State
from tests.support.clock import START
from tests.support.rows import busy_writer, execute
from tests.support.upstream_loops import Loops, loops
from tests.support.waiting import eventually

WHO: dict[str, Any] = {"owner": "worker", "lease": LEASE}


async def begin(running: Loops, job_id: str, *, owner: str = "worker") -> bool:
    found = await running.store.job(job_id)
    assert found is not None
    return await running.store.leases.begin_sending(
        found[0],
        running.clock(),
        owner=owner,
        lease=LEASE,
        deadline_at=running.clock() + timedelta(hours=1),
        awaits_callback=False,
    )


async def state(store: JobStore, job_id: str) -> State:
    found = await store.job(job_id)
    assert found is not None
    return found[0].state


async def test_a_cancellation_that_comes_before_the_first_byte_wins(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita")
        assert len((await running.store.leases.claim_queued("novita", START, limit=1, **WHO)).jobs) == 1
        assert await running.store.cancel(job_id, START, abandon=False)
        assert not await begin(running, job_id)
        assert await state(running.store, job_id) is State.CANCELED


async def test_a_cancellation_that_comes_after_it_is_reported_so(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita")
        await running.store.leases.claim_queued("novita", START, limit=1, **WHO)
        assert await begin(running, job_id)
        assert not await running.store.cancel(job_id, START, abandon=False)
        assert await running.store.cancel(job_id, START, abandon=True)
        assert await state(running.store, job_id) is State.CANCELED


async def test_of_a_cancellation_and_a_submission_at_once_exactly_one_wins_each_time(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        for _ in range(40):
            (job_id,) = await running.add("novita")
            await running.store.leases.claim_queued("novita", START, limit=1, **WHO)
            sent, canceled = await asyncio.gather(
                begin(running, job_id), running.store.cancel(job_id, START, abandon=False)
            )
            assert sent != canceled


async def test_a_claimed_job_is_nobody_elses_until_its_lease_ends(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        leases = running.store.leases
        ids = await running.add("novita", 3)
        first = (await leases.claim_queued("novita", START, limit=2, **WHO)).jobs
        others = (await leases.claim_queued("novita", START, limit=9, owner="other", lease=LEASE)).jobs
        assert sorted(job.id for job in (*first, *others)) == ids
        at = START + LEASE / 2
        await leases.renew([job.id for job in first], at, **WHO)
        ended = START + LEASE
        freed = await leases.claim_queued("novita", ended, limit=9, owner="x", lease=LEASE)
        assert [job.id for job in freed.jobs] == [job.id for job in others]
        assert await leases.first_queued(["novita"]) == {"novita": at + LEASE}
        assert len((await leases.claim_queued("novita", at + LEASE, limit=9, owner="y", lease=LEASE)).jobs) == 2
        assert not await begin(running, first[0].id)
        assert await begin(running, first[0].id, owner="y")


async def test_a_job_whose_holder_died_while_sending_is_unconfirmed_and_its_late_answer_still_counts(
    tmp_path: Path,
) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita")
        await running.store.leases.claim_queued("novita", START, limit=1, **WHO)
        assert await begin(running, job_id)
        running.clock.now += LEASE
        await running.submissions.step()
        assert await state(running.store, job_id) is State.UNCONFIRMED
        assert running.outside.sent_at == []
        answer = httpx.Response(200, json={"task_id": "task-0"})
        await running.intake.record_answer(
            answer, source=Source.RESPONSE, provider="novita", job_id=job_id, asked_at=START
        )
        await running.intake.read_some()
        assert await state(running.store, job_id) is State.RUNNING


async def test_an_answer_that_waits_to_be_read_is_no_dead_holder(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita")
        await running.store.leases.claim_queued("novita", START, limit=1, **WHO)
        assert await begin(running, job_id)
        answer = httpx.Response(200, json={"task_id": "task-0"})
        await running.intake.record_answer(
            answer, source=Source.RESPONSE, provider="novita", job_id=job_id, asked_at=START
        )
        running.clock.now += LEASE * 2
        await running.submissions.step()
        assert await state(running.store, job_id) is State.SENDING
        await running.intake.read_some()
        assert await state(running.store, job_id) is State.RUNNING
        assert "job.unconfirmed" not in await running.events()


async def test_an_earlier_no_that_is_read_late_does_not_send_a_job_that_is_under_way_again(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita")
        await running.store.leases.claim_queued("novita", START, limit=1, **WHO)
        running.clock.now += timedelta(seconds=1)
        assert await begin(running, job_id)
        busy = httpx.Response(429, json={"reason": "RATE_LIMIT_EXCEEDED"})
        await running.intake.record_answer(
            busy, source=Source.RESPONSE, provider="novita", job_id=job_id, asked_at=START
        )
        await running.intake.read_some()
        assert await state(running.store, job_id) is State.SENDING


async def test_a_job_whose_options_are_not_valid_any_more_fails_in_words_and_is_not_sent(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita", old_option=1)
        await running.run(seconds=5)
        found = await running.store.job(job_id)
        assert found is not None
        assert (found[0].state, found[0].error and found[0].error.code) == (State.FAILED, "invalid_options")
        assert running.outside.sent_at == []


@pytest.mark.parametrize(
    ("provider", "broken"),
    [
        ("pixelcut", httpx.Response(500, json={"error": "internal"})),
        ("apixo", httpx.Response(500, json={"code": 500, "message": "internal"})),
        ("apixo", httpx.Response(200, json={"code": 500, "message": "internal"})),
    ],
)
async def test_not_now_does_not_count_among_the_answers_that_are_tried_five_times(
    provider: str, broken: httpx.Response, tmp_path: Path
) -> None:
    async with loops(tmp_path) as running:
        calls = 0

        def instead() -> httpx.Response:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise httpx.ConnectError("no")
            busy = httpx.Response(429 if broken.status_code == 500 else 200, json={"code": 429, "message": "slow"})
            said = busy if calls <= 6 else broken
            return httpx.Response(said.status_code, headers=said.headers, content=said.content)

        running.outside.instead_of_accepting = instead
        (job_id,) = await running.add(provider)
        await running.run(seconds=3000)
        assert (await state(running.store, job_id), calls) == (State.FAILED, 6 + 5)


async def test_the_corrected_cost_of_a_finished_task_replaces_the_estimate(tmp_path: Path) -> None:
    async with loops(tmp_path, turnaround=lambda: 15.0) as running:
        (job_id,) = await running.add("upscayl")
        await running.run(seconds=60)
        found = await running.store.job(job_id)
        assert found is not None
        assert found[0].cost is not None
        assert dataclasses.astuple(found[0].cost) == (12, "credits")


async def test_a_process_that_was_stopped_for_longer_than_a_lease_does_not_give_itself_up(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        running.outside.gate.clear()
        (job_id,) = await running.add("novita")
        await running.submissions.step()
        await eventually(lambda: running.outside.calls == 1)
        running.clock.now += LEASE * 2
        await running.submissions.step()
        assert await state(running.store, job_id) is State.SENDING
        running.outside.gate.set()
        await eventually(lambda: running.submissions.pools["novita"].busy == 0)
        await running.intake.read_some()
        assert await state(running.store, job_id) is State.RUNNING
        assert "job.unconfirmed" not in await running.events()


def task_of(coroutine: str) -> asyncio.Task[object] | None:
    running = asyncio.all_tasks()
    return next((task for task in running if getattr(task.get_coro(), "__qualname__", "") == coroutine), None)


@pytest.mark.sqlite(reason="waits for the one writer")
async def test_a_stop_between_the_booking_and_the_first_byte_leaves_no_doubt(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita")
        await running.submissions.step()
        async with busy_writer(running.store.database):  # it has to wait for its turn to write
            await eventually(lambda: task_of("Leases.begin_sending"))
            work = task_of("Submissions._work")
            assert work is not None
            work.cancel()
        await asyncio.wait([work])
        found = await running.store.job(job_id)
        assert found is not None
        assert (found[0].state, found[0].tries, running.outside.calls) == (State.QUEUED, 1, 0)
        await running.run(seconds=600)
        assert (await state(running.store, job_id), running.outside.sent_at) == (State.SUCCEEDED, [0.0])


@pytest.mark.sqlite(reason="a trigger in the file")
async def test_a_stop_does_not_wait_for_a_disk_that_takes_no_answer(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add("novita")
        full = "CREATE TRIGGER full BEFORE INSERT ON evidence BEGIN SELECT RAISE(ABORT, 'full'); END"
        await execute(running.store.database, full)
        await running.submissions.step()
        await eventually(lambda: task_of("Submissions._record"))
        work = task_of("Submissions._work")
        assert work is not None
        work.cancel()
        _, late = await asyncio.wait([work], timeout=2.5)
        assert not late
        assert await state(running.store, job_id) is State.SENDING
        await execute(running.store.database, "DROP TRIGGER full")
        running.clock.now += LEASE
        await running.submissions.step()
        assert (await state(running.store, job_id), running.outside.calls) == (State.UNCONFIRMED, 1)


async def test_what_it_was_still_preparing_is_not_taken_up_twice(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        release, loop = threading.Event(), asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        occupied = loop.run_in_executor(None, release.wait)  # its picture is examined on the one thread there is
        try:
            await running.add("novita")
            await running.submissions.step()
            running.clock.now += LEASE * 2
            await running.submissions.step()
            assert running.submissions.pools["novita"].busy == 1
        finally:
            release.set()
            await occupied
        await eventually(lambda: running.submissions.pools["novita"].busy == 0)
