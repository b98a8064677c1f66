"""Floods of callbacks to one URL: bounded on disk, and no other job waits behind them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

from receiver.domain.jobs import Job
from receiver.web.callback_budget import CallbackBudget
from submitter.vocabulary import State
from tests.support.running_receiver import RunningReceiver, novita_body, running_receiver
from tests.support.waiting import eventually


async def fill(here: RunningReceiver, job: Job) -> int:
    """Post until it is refused; returns how many were taken."""
    for n in range(100):
        body = json.dumps({"n": n, "x": "x" * 10_000}).encode()
        answer = await here.post(job, body)
        if answer.status_code == 429:
            assert answer.json()["code"] == "too_many_callbacks"
            assert int(answer.headers["retry-after"]) > 0
            return n
        assert answer.status_code == 200
    raise AssertionError("it was never refused")


async def test_one_url_fills_its_budget_and_no_more_and_a_poll_is_made_instead(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, callback_budget=100_000) as here:
        flooded, other, signed_job = await here.job("novita"), await here.job("novita"), await here.job("freepik")
        assert 7 <= await fill(here, flooded) <= 10
        for _ in range(20):
            assert (await here.post(flooded, b"x" * 10_000)).status_code == 429
        await eventually(lambda: flooded.remote_id in here.upstream.polls)
        assert len(await here.evidence(flooded)) < 30
        assert sum(len(piece.body) for piece in await here.evidence(flooded)) < 100_000
        answer = await here.post(other, novita_body(other.remote_id or "", "IN_PROGRESS"))
        assert answer.status_code == 200
        for n in range(20):
            answer = await here.write_events(signed_job, "IN_PROGRESS", url=f"https://x.example/{n}/{'x' * 10_000}")
            assert answer.status_code == 200
        metrics = (await here.client.get("/metrics", headers={"host": "127.0.0.1"})).text
        assert 'receiver_callbacks_total{provider="novita",verdict="over_budget"} 21.0' in metrics
        here.upstream.says[flooded.remote_id or ""] = "COMPLETED"
        await here.becomes(flooded, State.SUCCEEDED)
    async with running_receiver(tmp_path, callback_budget=100_000) as here:
        assert await fill(here, flooded) <= 1, "it holds after a restart"


async def test_posts_at_once_do_not_overrun_a_budget(tmp_path: Path) -> None:
    async with running_receiver(tmp_path, callback_budget=100_000) as here:
        job = await here.job("novita")
        bodies = [json.dumps({"n": n, "x": "x" * 10_000}).encode() for n in range(60)]
        answers = Counter(answer.status_code for answer in await asyncio.gather(*(here.post(job, b) for b in bodies)))
        assert set(answers) == {200, 429}
        assert 5 <= answers[200] <= 10


async def test_a_budget_is_summed_up_in_steps_and_asked_for_again_when_spent() -> None:
    now, sums, stored = 0.0, 0, 0

    async def sum_up(job_id: str) -> int:
        nonlocal sums
        sums += 1
        return stored

    budget = CallbackBudget(8_000, sum_up, clock=lambda: now)
    while await budget.admits("job", 10):
        budget.written("job", 10)
        stored += 10
    assert 7_900 <= stored <= 8_000
    assert sums <= 10
    assert budget.may_hint("job")
    assert not budget.may_hint("job")
    assert not await budget.admits("job", 10)
    assert sums <= 10
    now, stored = 60.0, 0
    assert await budget.admits("job", 10), "old evidence was pruned"
