"""Hints: what an unsigned callback claims is confirmed by a poll, once, by our own key, and believed only then."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from receiver.domain.jobs import Source
from receiver.domain.lifecycle import Update
from receiver.store.settling import JobUpdate
from submitter.vocabulary import Report, State
from tests.support.running_receiver import RESULT, running_receiver
from tests.support.waiting import eventually, patience


async def test_a_confirmed_hint_settles_the_job_as_its_callback(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        here.upstream.says[job.remote_id or ""] = "COMPLETED"
        await here.write_events(job, "COMPLETED")
        done = await here.becomes(job, State.SUCCEEDED)
        assert done.settled_by is Source.CALLBACK
        assert here.upstream.polls == [job.remote_id]
        assert await here.verdicts(job) == ["hint"]
        assert await here.verdicts(job, "poll") == ["believed"]


async def test_freepik_without_a_secret_is_a_hint_too(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, webhook_secrets=()) as here:
        job = await here.job()
        here.upstream.says[job.remote_id or ""] = "FAILED"
        await here.write_events(job, "COMPLETED")
        done = await here.becomes(job, State.FAILED, State.SUCCEEDED)
        assert done.state is State.FAILED, "the status call decides"


async def test_hints_join_in_one_poll(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, poll_interval=30) as here:
        job = await here.job("novita")
        here.upstream.says[job.remote_id or ""] = "IN_PROGRESS"
        await asyncio.gather(*(here.write_events(job, "COMPLETED", url=f"https://x.example/{n}") for n in range(40)))
        await here.read()
        await here.write_events(job, "FAILED")
        await here.read()

        async def booked() -> bool:
            return (await here.now(job)).polls > 0

        await eventually(booked)
        polled = await here.now(job)
        assert here.upstream.polls == [job.remote_id]
        assert polled.next_poll_at is not None
        assert (polled.next_poll_at - datetime.now(UTC)).total_seconds() > 20, "the next poll is an interval away"


async def test_a_hint_during_a_poll_leads_to_another_one_and_they_never_overlap(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        task = job.remote_id or ""
        here.upstream.says[task] = "IN_PROGRESS"
        here.upstream.gate.clear()
        await here.write_events(job, "COMPLETED")
        async with patience():
            await here.upstream.entered.wait()
        # The answer of this poll was made before the task ended; the hint comes while it is on its way.
        here.upstream.says[task] = "COMPLETED"
        await here.write_events(job, "COMPLETED")
        await here.read()
        assert here.upstream.polls == [task]
        here.upstream.gate.set()
        done = await here.becomes(job, State.SUCCEEDED)
        assert done.settled_by is Source.CALLBACK
        assert here.upstream.polls == [task, task]


async def test_a_poll_that_says_still_running_goes_on_by_the_pollers_rules(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        task = job.remote_id or ""
        here.upstream.says[task] = "IN_PROGRESS"
        await here.write_events(job, "COMPLETED")
        await eventually(lambda: len(here.upstream.polls) >= 2)
        here.upstream.says[task] = "COMPLETED"
        done = await here.becomes(job, State.SUCCEEDED)
        assert done.settled_by is Source.POLL, "the claim was confirmed by a poll and found wrong"


@pytest.mark.parametrize(
    ("confirm", "provider", "polls"),
    [
        ("unsigned", "freepik", 0),
        ("unsigned", "novita", 1),
        ("always", "freepik", 1),
        ("always", "novita", 1),
        ("never", "freepik", 0),
        ("never", "novita", 0),
    ],
)
async def test_confirm_says_which_callbacks_are_confirmed_by_a_poll(
    confirm: str, provider: str, polls: int, tmp_path: Path
) -> None:
    async with running_receiver(tmp_path, confirm=confirm) as here:
        job = await here.job(provider)
        here.upstream.says[job.remote_id or ""] = "COMPLETED"
        await here.write_events(job, "COMPLETED")
        done = await here.becomes(job, State.SUCCEEDED)
        assert done.settled_by is Source.CALLBACK
        assert len(here.upstream.polls) == polls


async def test_a_hint_before_the_submit_answer_is_confirmed_by_a_poll_by_the_jobs_own_id(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita", State.SENDING, remote_id=None, next_poll_at=None)
        await here.write_events(job, "COMPLETED", task="task-1")
        await here.read()
        assert (await here.now(job)).state is State.SENDING
        assert here.upstream.polls == [], "its submit has not ended"
        here.upstream.says["task-1"] = "COMPLETED"
        update = Update(Report("task-1", State.RUNNING), Source.RESPONSE)
        await here.receiver.parts.intake.settle([JobUpdate(job.id, update)])
        done = await here.becomes(job, State.SUCCEEDED)
        assert (done.remote_id, done.settled_by) == ("task-1", Source.CALLBACK)


async def test_a_hint_that_named_another_task_than_the_submit_answer_counts_for_nothing(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita", State.SENDING, remote_id=None, next_poll_at=None)
        await here.write_events(job, "COMPLETED", task="forged")
        await here.read()
        update = Update(Report("task-1", State.RUNNING), Source.RESPONSE)
        await here.receiver.parts.intake.settle([JobUpdate(job.id, update)])
        running = await here.now(job)
        assert (running.state, running.hinted_at, running.claimed_id) == (State.RUNNING, None, None)
        assert here.upstream.polls == []


async def test_an_unconfirmed_job_is_found_by_the_id_that_its_callback_names(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita", State.UNCONFIRMED, remote_id=None)
        here.upstream.says["task-1"] = "COMPLETED"
        await here.write_events(job, "COMPLETED", task="task-1")
        done = await here.becomes(job, State.SUCCEEDED)
        assert (done.remote_id, done.settled_by) == ("task-1", Source.CALLBACK)


async def test_a_claimed_id_that_nobody_has_is_forgotten(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita", State.UNCONFIRMED, remote_id=None)
        await here.write_events(job, "COMPLETED", task="forged")

        async def forgotten() -> bool:
            return here.upstream.polls == ["forged"] and (await here.now(job)).claimed_id is None

        await eventually(forgotten)
        here.upstream.says["task-1"] = "COMPLETED"
        await here.write_events(job, "COMPLETED", task="task-1")
        assert (await here.becomes(job, State.SUCCEEDED)).remote_id == "task-1"


async def test_a_claimed_id_of_another_job_is_neither_polled_nor_taken(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        holder = await here.job("novita", remote_id="task-1")
        job = await here.job("novita", State.UNCONFIRMED, remote_id=None)
        here.upstream.says["task-1"] = "COMPLETED"
        await here.write_events(job, "COMPLETED", task="task-1")
        await here.read()
        after = await here.now(job)
        assert (after.state, after.remote_id, after.claimed_id) == (State.UNCONFIRMED, None, None)
        assert await here.verdicts(job) == ["ignored"]
        assert here.upstream.polls == []
        assert await here.now(holder) == holder


async def test_a_signed_callback_that_names_another_jobs_task_is_ignored(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        await here.job(remote_id="task-1")
        job = await here.job(state=State.UNCONFIRMED, remote_id=None)
        await here.write_events(job, "COMPLETED", task="task-1")
        await here.read()
        assert (await here.now(job)).state is State.UNCONFIRMED
        assert await here.verdicts(job) == ["ignored"]


async def test_two_jobs_that_claim_one_task_do_not_both_get_it(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        jobs = [await here.job("novita", State.UNCONFIRMED, remote_id=None) for _ in range(2)]
        here.upstream.says["task-1"] = "COMPLETED"
        await asyncio.gather(*(here.write_events(job, "COMPLETED", task="task-1") for job in jobs))

        async def settled() -> bool:
            now = [await here.now(job) for job in jobs]
            return all(job.state is State.SUCCEEDED or job.claimed_id is None for job in now) and bool(
                here.upstream.polls
            )

        await eventually(settled)
        states = sorted([(await here.now(job)).state.value for job in jobs])
        assert states == ["succeeded", "unconfirmed"]


@pytest.mark.parametrize("state", [State.EXPIRED, State.CANCELED])
@pytest.mark.parametrize("provider", ["freepik", "novita"])
async def test_a_result_that_comes_after_we_gave_up_is_kept_and_reported_once(
    provider: str, state: State, tmp_path: Path
) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job(provider, state)
        here.upstream.says[job.remote_id or ""] = "COMPLETED"
        await here.write_events(job, "COMPLETED")

        async def late() -> bool:
            return (await here.now(job)).late_at is not None

        await eventually(late)
        await here.write_events(job, "COMPLETED", url=f"{RESULT}?again")
        await here.read()
        now, images = await here.whole(job)
        assert (now.state, now.settled_by) == (state, None)
        assert [image.source_url for image in images] == [RESULT]
        assert [event for event in await here.events(job) if not event.startswith("job.images")] == ["job.late_result"]


async def test_forged_hints_of_an_ended_job_cost_one_poll_each_interval(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, poll_interval=30) as here:
        job = await here.job("novita", State.CANCELED)
        here.upstream.says[job.remote_id or ""] = "IN_PROGRESS"
        for _ in range(5):
            await here.write_events(job, "COMPLETED")
            await here.read()
        await eventually(lambda: here.upstream.polls)
        await here.write_events(job, "COMPLETED")
        await here.read()
        assert len(here.upstream.polls) == 1
        assert await here.events(job) == []


async def test_a_forged_hint_that_names_another_finished_task_of_the_account_settles_nothing(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita", State.UNCONFIRMED, remote_id=None)
        other = await here.job("novita", State.SUCCEEDED, remote_id=None)
        elsewhere = "https://hooks.example.com/novita/of-another-system"
        for n, url in enumerate((f"https://hooks.example.com{here.path(other)}", elsewhere)):
            task = f"task-of-another-{n}"
            here.upstream.says[task], here.upstream.callback_urls[task] = "COMPLETED", url
            await here.write_events(job, "COMPLETED", task=task)

            async def is_read(number: int = n + 1) -> bool:
                return (await here.verdicts(job, "poll")).count("ignored") == number

            await eventually(is_read)
            after = await here.now(job)
            assert (after.state, after.remote_id, after.claimed_id) == (State.UNCONFIRMED, None, None)
        assert await here.verdicts(job, "poll") == ["ignored", "ignored"]
        own = "task-of-its-own"
        here.upstream.says[own] = "COMPLETED"
        here.upstream.callback_urls[own] = f"https://an-earlier-name.example{here.path(job)}"
        await here.write_events(job, "COMPLETED", task=own)
        done = await here.becomes(job, State.SUCCEEDED)
        assert done.remote_id == own


async def test_a_job_with_a_task_id_of_its_own_is_settled_whatever_url_is_echoed(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        job = await here.job("novita")
        task = job.remote_id or ""
        here.upstream.says[task], here.upstream.callback_urls[task] = "COMPLETED", "https://a-gateway.example/rewritten"
        await here.write_events(job, "COMPLETED")
        await here.becomes(job, State.SUCCEEDED)
