"""A task may be done a moment before its result is listed; and an expired job says what its polls really said."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from receiver.domain.evidence import Evidence, headers_to_json
from receiver.domain.jobs import Source
from submitter.parsing import EMPTY_POLLS
from submitter.vocabulary import State, Trust
from tests.support.upstream_loops import Loops, loops

POLLED = ("freepik", "apixo", "novita", "upscayl")
LINK = "https://example.com/late.png"


def empty(provider: str, task: str) -> httpx.Response:
    """Done, by *provider*'s word, with no image."""
    return httpx.Response(
        200,
        json={
            "freepik": {"data": {"task_id": task, "status": "COMPLETED", "generated": []}},
            "apixo": {"code": 200, "message": "success", "data": {"taskId": task, "state": "success"}},
            "novita": {"task": {"task_id": task, "status": "TASK_STATUS_SUCCEED"}, "images": []},
            "upscayl": {"status": "ok", "data": {"status": "PROCESSED", "files": [{"path": "users/u/a.png"}]}},
        }[provider],
    )


async def callback(running: Loops, job_id: str, *, trust: Trust) -> None:
    """A Freepik callback that brings the link, as it is once it is verified."""
    job, _ = await running.store.job(job_id) or pytest.fail("no such job")
    body = {"task_id": job.remote_id, "status": "COMPLETED", "generated": [LINK]}
    await running.intake.record(
        Evidence(
            source=Source.CALLBACK,
            provider="freepik",
            job_id=job_id,
            received_at=running.clock(),
            headers_json=headers_to_json([]),
            body=json.dumps(body).encode(),
            trust=trust,
        )
    )
    await running.run(seconds=1)


@pytest.mark.parametrize("provider", POLLED)
@pytest.mark.parametrize("late", [1, EMPTY_POLLS - 1])
async def test_the_link_is_asked_for_again_with_growing_pauses(tmp_path: Path, provider: str, late: int) -> None:
    async with loops(tmp_path) as running:
        (job_id,) = await running.add(provider)
        running.outside.instead = lambda task: (
            empty(provider, task) if 0 < running.outside.late_polls(task) <= late else None
        )
        await running.run(seconds=1500)
        found = await running.store.job(job_id)
        assert found is not None and found[0].state is State.SUCCEEDED
        assert len(found[1]) == 1
        polls = [at for at in running.outside.polls["task-0"] if at >= running.outside.ends["task-0"]]
        pauses = [later - earlier for earlier, later in pairwise(polls)]
        assert len(pauses) == late
        assert pauses == sorted(pauses)


@pytest.mark.parametrize("provider", POLLED)
async def test_a_task_that_never_lists_its_image_fails_after_a_few_polls(tmp_path: Path, provider: str) -> None:
    async with loops(tmp_path, turnaround=lambda: 0.0) as running:
        (job_id,) = await running.add(provider)
        running.outside.instead = lambda task: empty(provider, task)
        await running.run(seconds=1500)
        found = await running.store.job(job_id)
        assert found is not None and found[0].error is not None
        assert (found[0].state, found[0].error.code) == (State.FAILED, "no_result_url")
        assert len(running.outside.polls["task-0"]) == EMPTY_POLLS


async def test_at_its_deadline_a_job_that_lists_nothing_fails_and_does_not_expire(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None, turnaround=lambda: 0.0, job_timeout=30) as running:
        (job_id,) = await running.add("freepik")
        running.outside.instead = lambda task: empty("freepik", task)
        await running.run(seconds=200)
        found = await running.store.job(job_id)
        assert found is not None and found[0].error is not None
        assert found[0].error.code == "no_result_url"


async def failed_for_want_of_a_link(running: Loops) -> str:
    (job_id,) = await running.add("freepik")
    running.outside.instead = lambda task: empty("freepik", task)
    await running.run(seconds=1500)
    assert (await running.states())["failed"] == 1
    return job_id


async def test_a_signed_callback_that_brings_the_link_later_is_believed(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None, turnaround=lambda: 0.0) as running:
        job_id = await failed_for_want_of_a_link(running)
        await callback(running, job_id, trust=Trust.SIGNED_BODY)
        found = await running.store.job(job_id)
        assert found is not None
        assert (found[0].state, found[0].error, found[0].settled_by) == (State.SUCCEEDED, None, Source.CALLBACK)
        assert [image.source_url for image in found[1]] == [LINK]
        assert (await running.events())["job.succeeded"] == 1


async def test_an_unsigned_callback_that_brings_the_link_later_makes_a_poll_due(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None, turnaround=lambda: 0.0) as running:
        job_id = await failed_for_want_of_a_link(running)
        polls = len(running.outside.polls["task-0"])
        await callback(running, job_id, trust=Trust.CAPABILITY_TOKEN)
        assert len(running.outside.polls["task-0"]) == polls + 1
        assert (await running.states())["failed"] == 1
        running.outside.instead = lambda task: None
        running.clock.now += timedelta(seconds=60)
        await callback(running, job_id, trust=Trust.CAPABILITY_TOKEN)
        assert (await running.states())["succeeded"] == 1


async def test_an_operators_poll_finds_the_link_of_a_job_that_failed_for_want_of_it(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None, turnaround=lambda: 0.0) as running:
        job_id = await failed_for_want_of_a_link(running)
        running.outside.instead = lambda task: None
        assert await running.store.leases.poll_now(job_id, running.clock(), apart_seconds=10)
        await running.run(seconds=30)
        assert (await running.states())["succeeded"] == 1


async def test_a_job_that_the_provider_failed_is_not_polled_again(tmp_path: Path) -> None:
    async with loops(tmp_path, public_url=None, turnaround=lambda: 0.0) as running:
        (job_id,) = await running.add("freepik")
        failed = {"data": {"task_id": "task-0", "status": "FAILED", "generated": []}}
        running.outside.instead = lambda task: httpx.Response(200, json=failed)
        await running.run(seconds=100)
        assert not await running.store.leases.poll_now(job_id, running.clock(), apart_seconds=10)
        await callback(running, job_id, trust=Trust.SIGNED_BODY)
        assert (await running.states())["failed"] == 1


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(200, json={"data": {"task_id": "task-0", "status": "ERROR", "generated": []}}), "'ERROR'"),
        (httpx.Response(403, json={"message": "no such subscription"}), "no such subscription"),
        (httpx.Response(200, json={"error": {"message": "account closed"}}), "account closed"),
    ],
)
async def test_an_expired_job_says_what_its_polls_really_said(
    tmp_path: Path, response: httpx.Response, said: str
) -> None:
    async with loops(tmp_path, public_url=None, job_timeout=60) as running:
        (job_id,) = await running.add("freepik")
        running.outside.instead = lambda task: response
        await running.run(seconds=200)
        found = await running.store.job(job_id)
        assert found is not None and found[0].error is not None
        assert found[0].state is State.EXPIRED
        assert said in found[0].error.message
