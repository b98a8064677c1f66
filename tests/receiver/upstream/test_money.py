"""Whatever goes wrong between us and a provider, and whenever we die: no job is paid twice, and none is forgotten."""

import asyncio
import hashlib
import json
import os
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from receiver.store.leases import LEASE
from submitter.sandbox import Faults, RemoteTask, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import live, submit, wait_for_state
from tests.support.waiting import eventually

JOBS = int(os.environ.get("STORM_JOBS", "60"))
KILLS = int(os.environ.get("STORM_KILLS", "3"))
PROVIDERS = ("freepik", "upscayl", "pixelcut")
STORM = Faults(
    reset_before=0.06,
    bad_gateway=0.04,
    unavailable=0.08,
    busy=0.08,
    accept_then_reset=0.06,
    accept_then_bad_gateway=0.03,
    hang=0.03,
    hang_seconds=1.5,
    unreadable=0.03,
    late_answer_seconds=0.15,
    retry_after_seconds=0.3,
)
IMPATIENT = {"RECEIVER_CALLBACK_TIMEOUT": "2"}


async def post_through_deaths(client: httpx.AsyncClient, provider: str, picture: bytes, key: str) -> str:
    """The id of the job; the same post is made again until it is answered."""
    while True:
        try:
            answer = await client.post(
                "/v1/jobs",
                data={"job": json.dumps({"provider": provider})},
                files={"image": ("in.jpg", picture)},
                headers={"idempotency-key": key},
            )
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            continue
        assert answer.status_code in (200, 202), answer.text
        return str(answer.json()["id"])


@pytest.mark.slow
async def test_a_storm_of_faults_and_deaths_pays_no_job_twice_and_forgets_none(tmp_path: Path) -> None:
    dice = random.Random(11)
    sandbox = Sandbox(seed=11, turnaround_seconds=(0.05, 0.4), faults=STORM)
    base = picture_bytes(96, 64)
    async with live(tmp_path, sandbox=sandbox, environment=IMPATIENT) as (receiver, _), receiver.client() as client:
        pictures = [base + n.to_bytes(4, "big") for n in range(JOBS)]
        slots = asyncio.Semaphore(6)

        async def post(n: int) -> str:
            async with slots:
                return await post_through_deaths(client, PROVIDERS[n % 3], pictures[n], f"storm-{n}")

        posting = [asyncio.create_task(post(n)) for n in range(JOBS)]
        for death in range(1, KILLS + 1):
            wanted = death * JOBS * 0.7 / (KILLS + 1)
            await eventually(
                lambda wanted=wanted: len(sandbox.accepted()) >= wanted,  # type: ignore[misc]
                what=lambda: f"only {len(sandbox.accepted())} tasks",
            )
            await asyncio.sleep(dice.uniform(0, 0.3))
            await receiver.kill()
            await receiver.start()
        ids = await asyncio.gather(*posting)

        async def all_sent() -> bool:
            left = (await client.get("/v1/jobs", params={"state": "queued,sending", "limit": 1})).json()["items"]
            return not left

        await eventually(all_sent)
        sandbox.faults = Faults()
        await sandbox.idle()
        jobs = {job_id: await _settled(client, job_id) for job_id in ids}

    by_digest = {hashlib.sha256(picture).hexdigest(): job_id for picture, job_id in zip(pictures, ids, strict=True)}

    def job_of(task: RemoteTask) -> str:
        assert isinstance(task.order.source, bytes)
        return by_digest[hashlib.sha256(task.order.source).hexdigest()]

    accepted = Counter(job_of(task) for task in sandbox.accepted())
    called_back = {
        job_of(task)
        for task in sandbox.accepted("freepik")
        for callback in task.callbacks
        if callback.state == "COMPLETED" and any(attempt.status == 200 for attempt in callback.attempts)
    }
    assert len(set(ids)) == JOBS
    assert max(accepted.values()) == 1
    states = Counter((job["provider"], job["state"]) for job in jobs.values())
    for job_id, job in jobs.items():
        assert job["state"] in ("succeeded", "unconfirmed"), (job, states)
        if job["state"] == "succeeded":
            assert accepted[job_id] == 1
        if job_id in called_back:
            assert job["state"] == "succeeded"
    print(f"\n{JOBS} jobs, {KILLS} deaths: {dict(states)}; {sum(accepted.values())} tasks")


async def _settled(client: httpx.AsyncClient, job_id: str) -> dict[str, object]:
    """The job when it has ended, or stays unconfirmed."""
    return await wait_for_state(client, job_id, "succeeded", "failed", "expired", "unconfirmed")


AMBIGUOUS = ("accept_then_reset", "accept_then_bad_gateway", "unreadable")


@pytest.mark.parametrize("fault", AMBIGUOUS)
async def test_an_answer_that_is_lost_leaves_the_job_unconfirmed_and_unsent(fault: str, tmp_path: Path) -> None:
    one_each = {provider: Faults(**{fault: 1}) for provider in ("pixelcut", "upscayl")}
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.05, 0.1), faults=Faults(per_provider=one_each))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        for provider in ("pixelcut", "upscayl"):
            job = await submit(client, provider, picture_bytes(96, 64))
            found = await wait_for_state(client, job["id"], "unconfirmed")
            assert found["error"]["message"]
            assert len(sandbox.accepted(provider)) == 1
            assert (await client.post(f"/v1/jobs/{job['id']}/resubmit")).json()["code"] == "may_pay_twice"
            again = await client.post(f"/v1/jobs/{job['id']}/resubmit", json={"may_pay_twice": True})
            assert again.json()["resubmit_of"] == job["id"]
            await wait_for_state(client, again.json()["id"], "succeeded")
            assert len(sandbox.accepted(provider)) == 2
            assert (await client.get(f"/v1/jobs/{job['id']}")).json()["state"] == "unconfirmed"


@pytest.mark.parametrize("provider", ["freepik", "apixo", "novita"])
async def test_the_callback_of_a_lost_answer_settles_its_job(provider: str, tmp_path: Path) -> None:
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.3, 0.4), faults=Faults(accept_then_reset=1))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        job = await submit(client, provider, picture_bytes(96, 64))
        found = await wait_for_state(client, job["id"], "succeeded")
        assert found["settled_by"] == "callback"
        assert len(sandbox.accepted()) == 1


@pytest.mark.parametrize("fault", ["busy", "unavailable"])
async def test_not_now_is_tried_again_after_the_time_it_names(fault: str, tmp_path: Path) -> None:
    names = ("freepik", "apixo", "novita", "upscayl", "pixelcut")
    twice = Faults(**{fault: 2, "retry_after_seconds": 0.4})
    sandbox = Sandbox(seed=1, turnaround_seconds=(0.05, 0.1), faults=Faults(per_provider=dict.fromkeys(names, twice)))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _), receiver.client() as client:
        began = asyncio.get_running_loop().time()
        jobs = [await submit(client, name, picture_bytes(96, 64)) for name in names]
        for job in jobs:
            assert (await wait_for_state(client, job["id"]))["state"] == "succeeded"
        assert asyncio.get_running_loop().time() - began >= 0.75
        for name in names:
            assert (sandbox.calls(name), len(sandbox.accepted(name))) == (3, 1)


async def test_no_way_to_the_provider_is_no_doubt(tmp_path: Path) -> None:
    nowhere = {"PIXELCUT_BASE_URL": "http://127.0.0.1:1"}
    async with live(tmp_path, environment=nowhere) as (receiver, _), receiver.client() as client:
        job = await submit(client, "pixelcut", picture_bytes(96, 64))
        await eventually(lambda: receiver.log.count("submit_unsuccessful") >= 2)
        await wait_for_state(client, job["id"], "queued")
        assert (await client.get(f"/v1/jobs/{job['id']}/evidence")).json()["items"] == []


async def test_sigterm_during_a_call_that_lasts_on_ends_at_once_and_leaves_it_unconfirmed(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=1, turnaround_seconds=(3600, 3600))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        async with receiver.client() as client:
            job = await submit(client, "pixelcut", picture_bytes(96, 64))
            await eventually(lambda: sandbox.accepted())
        await receiver.stop()
        await receiver.start()
        async with receiver.client() as client:
            assert (await client.get(f"/v1/jobs/{job['id']}")).json()["state"] == "unconfirmed"
        assert len(sandbox.accepted()) == 1


async def test_what_was_being_sent_when_the_process_was_killed_is_unconfirmed_after_a_lease(tmp_path: Path) -> None:
    assert timedelta(seconds=10) >= LEASE
    sandbox = Sandbox(seed=1, turnaround_seconds=(3600, 3600))
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        async with receiver.client() as client:
            job = await submit(client, "pixelcut", picture_bytes(96, 64))
            await eventually(lambda: sandbox.accepted())
        await receiver.kill()
        await receiver.start()
        async with receiver.client() as client:
            await wait_for_state(client, job["id"], "unconfirmed")
        assert len(sandbox.accepted()) == 1
