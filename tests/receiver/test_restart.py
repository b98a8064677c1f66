"""A death at any moment: what was queued, running or hinted goes on in the next life."""

from pathlib import Path

from submitter.sandbox import Faults, Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.processes import live, submit, wait_for_state
from tests.support.waiting import eventually


async def test_what_was_running_or_queued_at_a_death_goes_on(tmp_path: Path) -> None:
    sandbox = Sandbox(seed=2, turnaround_seconds=(1.5, 1.6))
    async with live(tmp_path, sandbox=sandbox, environment={"NOVITA_RATE": "1/8"}) as (receiver, _):
        async with receiver.client() as client:
            running = [(await submit(client, name, picture_bytes(64, 64)))["id"] for name in ("upscayl", "novita")]
            queued = (await submit(client, "novita", picture_bytes(64, 64)))["id"]
            for job_id in running:
                await wait_for_state(client, job_id, "running")
            assert (await client.get(f"/v1/jobs/{queued}")).json()["state"] == "queued"
        await receiver.kill()
        await eventually(lambda: all(task.ended.is_set() for task in sandbox.accepted()))
        await receiver.start()
        async with receiver.client() as client:
            for job_id in (*running, queued):
                assert (await wait_for_state(client, job_id))["state"] == "succeeded"
        assert len(sandbox.accepted()) == 3


async def test_a_hint_that_no_poll_had_confirmed_at_a_death_is_confirmed_afterwards(tmp_path: Path) -> None:
    faults = Faults(status_unavailable=1.0, retry_after_seconds=0.2)
    sandbox = Sandbox(seed=2, turnaround_seconds=(0.2, 0.3), faults=faults)
    async with live(tmp_path, sandbox=sandbox) as (receiver, _):
        async with receiver.client() as client:
            job = await submit(client, "apixo", picture_bytes(64, 64))
            await eventually(lambda: sandbox.calls("apixo", "status") > 0)
            assert (await client.get(f"/v1/jobs/{job['id']}")).json()["state"] == "running"
        await receiver.kill()
        sandbox.faults = Faults()
        await receiver.start()
        async with receiver.client() as client:
            done = await wait_for_state(client, job["id"])
            assert (done["state"], done["settled_by"]) == ("succeeded", "callback")


async def test_an_image_whose_download_was_cut_by_a_death_is_kept_afterwards(tmp_path: Path) -> None:
    async with live(tmp_path) as (receiver, sandbox):
        async with receiver.client() as client:
            job = await submit(client, "pixelcut", picture_bytes(1200, 900))
            await eventually(lambda: sandbox.accepted() and sandbox.accepted()[0].ended.is_set())
        await receiver.kill()
        await receiver.start()
        async with receiver.client() as client:
            done = await wait_for_state(client, job["id"], "succeeded", "unconfirmed", kept=True)
            assert len(sandbox.accepted()) == 1
            if done["state"] == "succeeded":
                kept = await client.get(f"/v1/jobs/{job['id']}/images/0")
                assert len(kept.content) == done["images"][0]["bytes"]
