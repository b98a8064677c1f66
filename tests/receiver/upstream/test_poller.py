"""Polls: late, few, slowed down by busy providers, and made at the deadline if nothing came."""

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx
import pytest

from receiver.store.leases import LEASE
from receiver.upstream.poller import MOST_POLLS
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from tests.bench.poll import prepare
from tests.support.processes import live, submit, wait_for_state
from tests.support.running_receiver import running_receiver
from tests.support.upstream_loops import loops
from tests.support.waiting import eventually


@pytest.mark.parametrize("provider", ["freepik", "apixo", "novita", "upscayl"])
async def test_with_every_callback_lost_each_job_settles_within_two_polls_of_its_end(
    provider: str, tmp_path: Path
) -> None:
    dice = random.Random(3)
    async with loops(tmp_path, turnaround=lambda: dice.uniform(5, 120)) as running:
        await running.add(provider, 60)
        await running.run(until=lambda: False, seconds=400)
        assert await running.states() == {"succeeded": 60}
        late = [running.outside.late_polls(task) for task in running.outside.ends]
        assert (median(late), max(late)) <= (2, 2)
        every = [len(running.outside.polls[task]) for task in running.outside.ends]
        assert median(every) <= (1 if provider != "upscayl" else 5)


async def test_with_no_callback_lost_freepik_costs_no_poll_and_the_unsigned_cost_one(tmp_path: Path) -> None:
    async with live(tmp_path, sandbox=Sandbox(seed=2, turnaround_seconds=(0.1, 0.3))) as (receiver, sandbox):
        async with receiver.client() as client:
            for provider in ("freepik", "apixo", "novita"):
                ids = [(await submit(client, provider, picture_bytes(64, 64)))["id"] for _ in range(5)]
                for job_id in ids:
                    assert (await wait_for_state(client, job_id))["settled_by"] == "callback"
            await sandbox.idle()
        assert sandbox.calls("freepik", "status") == 0
        assert [task.status_calls for task in sandbox.accepted("apixo")] == [1] * 5
        assert [task.status_calls for task in sandbox.accepted("novita")] == [1] * 5


async def test_intervals_grow_until_the_deadline_and_the_last_poll_is_made_there(tmp_path: Path) -> None:
    async with loops(tmp_path, turnaround=lambda: 1e9, public_url=None, job_timeout=900) as running:
        await running.add("novita")
        await running.run(seconds=2000)
        assert await running.states() == {"expired": 1}
        (polls,) = running.outside.polls.values()
        assert polls[0] == pytest.approx(5, abs=1)
        gaps = [after - before for before, after in pairwise(polls)]
        assert gaps[0] < gaps[2] < gaps[4] <= 66
        assert polls[-1] == pytest.approx(900, abs=1)
        assert len(polls) < 25
        assert (await running.events())["job.overdue"] == 1


async def test_a_result_at_the_last_poll_is_a_result(tmp_path: Path) -> None:
    async with loops(tmp_path, turnaround=lambda: 899, silence=10_000, job_timeout=900) as running:
        await running.add("freepik")
        await running.run(seconds=2000)
        assert await running.states() == {"succeeded": 1}
        assert [len(polls) for polls in running.outside.polls.values()] == [1]


async def test_too_many_status_calls_slow_down_all_polls_of_that_provider_and_at_no_other(tmp_path: Path) -> None:
    async with loops(tmp_path, turnaround=lambda: 1.0, public_url=None) as running:
        refused: list[float] = []

        def busy(task: str) -> httpx.Response | None:
            if running.outside.ends[task] and running.clock.seconds() < 100 and int(task.split("-")[1]) < 20:
                refused.append(running.clock.seconds())
                return httpx.Response(429, json={"reason": "RATE_LIMIT_EXCEEDED"}, headers={"retry-after": "60"})
            return None

        running.outside.instead = busy
        await running.add("novita", 20)
        await running.run(seconds=2)
        await running.add("upscayl", 5)
        await running.run(seconds=400)
        assert await running.states() == {"succeeded": 25}
        assert len(refused) <= 4
        others = [polls for task, polls in running.outside.polls.items() if int(task.split("-")[1]) >= 20]
        assert all(len(polls) == 1 and polls[0] < 20 for polls in others)


async def test_a_provider_whose_key_is_gone_is_not_asked_and_its_jobs_still_end(tmp_path: Path) -> None:
    async with loops(tmp_path, turnaround=lambda: 1e9, public_url=None, job_timeout=600) as running:
        await running.add("novita", 3)
        await running.run(seconds=1)
    async with loops(tmp_path, turnaround=lambda: 1e9, configured=frozenset({"apixo"}), job_timeout=600) as running:
        steps = 0

        def counted() -> bool:
            nonlocal steps
            steps += 1
            return False

        await running.add("novita")
        await running.run(until=counted, seconds=1000)
        assert running.outside.polls == {}
        assert await running.states() == {"expired": 3, "queued": 1}
        assert steps < 400


async def test_an_unconfirmed_job_never_expires_and_is_overdue_at_its_deadline(tmp_path: Path) -> None:
    async with loops(tmp_path, job_timeout=600) as running:
        running.outside.instead_of_accepting = lambda: httpx.Response(504)
        await running.add("pixelcut")
        await running.add("freepik")
        await running.run(seconds=5000)
        assert await running.states() == {"unconfirmed": 2}
        assert (await running.events())["job.overdue"] == 2
        assert running.outside.polls == {}


async def test_polls_of_one_job_never_overlap_even_after_a_pause_longer_than_a_lease(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None) as running:
        await running.add("novita")
        await running.run(seconds=1)
        running.outside.gate.clear()
        running.clock.now += timedelta(seconds=10)
        await running.poller.step()
        await eventually(lambda: running.outside.calls == 2)
        running.clock.now += LEASE * 2
        await running.poller.step()
        assert running.poller.pools["novita"].busy == 1
        running.outside.gate.set()
        await eventually(lambda: running.poller.pools["novita"].busy == 0)
        assert running.outside.calls == 2


def test_due_polls_are_found_by_an_index_however_many_jobs_are_open(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    few = prepare(tmp_path / "few.db", open_jobs=500, due=50, now=now)
    many = prepare(tmp_path / "many.db", open_jobs=20_000, due=50, now=now)
    assert few == many == ["SEARCH jobs USING INDEX jobs_poll (provider=? AND next_poll_at<?)"]


async def test_one_providers_hanging_status_calls_take_no_place_of_anothers(tmp_path: Path) -> None:
    async with running_receiver(tmp_path) as here:
        now = datetime.now(UTC)
        for _ in range(40):
            job = await here.job("novita", next_poll_at=now)
            here.upstream.says[job.remote_id or ""] = "IN_PROGRESS"
        await eventually(lambda: len(here.upstream.polls) >= 40)
        here.upstream.novita_gate.clear()
        answered = len(here.upstream.polls)
        await eventually(lambda: len(here.upstream.polls) >= answered + MOST_POLLS)
        jobs = [await here.job("freepik", next_poll_at=now) for _ in range(20)]
        for job in jobs:
            here.upstream.says[job.remote_id or ""] = "COMPLETED"
        for job in jobs:
            assert (await here.becomes(job, State.SUCCEEDED)).settled_by == "poll"
        here.upstream.novita_gate.set()
