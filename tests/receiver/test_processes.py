"""Many processes on one database: the public side without keys, workers beside it, and one machine's processes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.receiver.test_spine import SETTLED_BY
from tests.support.cli import bare_environment, receiver_command
from tests.support.ports import free_port
from tests.support.processes import LiveReceiver, provider_environment, submit, wait_for_state
from tests.support.waiting import eventually


@asynccontextmanager
async def web_and_worker(
    tmp_path: Path, engine: dict[str, str], *, more: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[LiveReceiver, LiveReceiver, Sandbox]]:
    """A public process without provider keys, a private one with them, and the sandbox."""
    sandbox = Sandbox(seed=7, turnaround_seconds=(0.1, 0.3))
    async with sandbox.serve() as origin:
        keys = {**provider_environment(Sandbox.base_urls(origin)), **(more or {})}
        public = {name: value for name, value in keys.items() if not name.endswith("_API_KEY")}
        web = LiveReceiver(tmp_path / "data", {**public, **engine}, command=("serve", "--no-workers"))
        private = {**keys, **engine, "RECEIVER_PUBLIC_URL": web.url}
        worker = replace(web, environment=private, port=free_port(), command=("work",))
        if engine:
            done = await receiver_command("migrate", environment=web.full_environment(), directory=tmp_path)
            assert done.status == 0, done.err
        await worker.start()
        await web.start()
        try:
            yield web, worker, sandbox
        finally:
            await asyncio.gather(web.stop(), worker.stop())


async def test_the_public_side_takes_jobs_without_a_key_and_workers_do_them(
    tmp_path: Path, engine: dict[str, str]
) -> None:
    async with web_and_worker(tmp_path, engine) as (web, worker, _), web.client() as client:
        assert not any(name.endswith("_API_KEY") for name in web.environment)
        for provider, settled_by in SETTLED_BY.items():
            job = await submit(client, provider, picture_bytes(120, 90))
            done = await wait_for_state(client, job["id"], kept=True)
            assert (done["state"], done["settled_by"]) == ("succeeded", settled_by)
        async with worker.client() as private:
            assert (await private.get("/readyz")).status_code == 200
            assert (await private.get("/v1/jobs")).status_code == 404, "a worker answers no requests"


async def test_without_a_worker_jobs_wait_and_callbacks_are_kept(tmp_path: Path, engine: dict[str, str]) -> None:
    async with web_and_worker(tmp_path, engine) as (web, worker, _), web.client() as client:
        await worker.stop()
        job = await submit(client, "novita", picture_bytes(120, 90))
        assert (await client.get(f"/v1/jobs/{job['id']}")).json()["state"] == "queued"
        await worker.start()
        assert (await wait_for_state(client, job["id"]))["state"] == "succeeded"


async def test_two_workers_together_call_a_provider_no_faster_than_its_rate(
    tmp_path: Path, engine: dict[str, str]
) -> None:
    jobs, burst, per_second = 60, 10, 10
    async with web_and_worker(tmp_path, engine, more={"NOVITA_RATE": "10/1"}) as (web, worker, sandbox):
        second = replace(worker, port=free_port())
        await second.start()
        try:
            async with web.client() as client:
                began_at = datetime.now(UTC)
                posted = [submit(client, "novita", picture_bytes(64, 64)) for _ in range(jobs)]
                await asyncio.gather(*posted)
                await eventually(lambda: len(sandbox.accepted("novita")) == jobs)
        finally:
            await second.stop()
        for number, task in enumerate(sandbox.accepted("novita"), 1):
            passed = (task.accepted_at - began_at).total_seconds()
            assert number <= burst + per_second * passed + 1, f"call {number} came after {passed} s"
        assert sandbox.calls("novita") == jobs


async def test_processes_of_one_machine_share_a_port_and_one_that_dies_is_started_again(tmp_path: Path) -> None:
    async with Sandbox(seed=7, turnaround_seconds=(0.1, 0.3)).serve() as origin:
        environment = provider_environment(Sandbox.base_urls(origin))
        receiver = LiveReceiver(tmp_path / "data", environment, command=("serve", "--processes", "3"))
        await receiver.start()
        assert receiver.process is not None
        parent = psutil.Process(receiver.process.pid)
        children = {child.pid for child in parent.children()}
        assert len(children) == 3
        async with receiver.client() as client:
            job = await submit(client, "freepik", picture_bytes(120, 90))
            assert (await wait_for_state(client, job["id"]))["settled_by"] == "callback"
        for child in children:
            os.kill(child, signal.SIGKILL)

        def replaced() -> bool:
            now = {child.pid for child in parent.children() if child.status() != psutil.STATUS_ZOMBIE}
            return len(now) == 3 and not now & children

        await eventually(replaced)
        async with receiver.client() as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/v1/jobs")).status_code == 200
                except OSError:
                    return False

            await eventually(answers)
            job = await submit(client, "upscayl", picture_bytes(120, 90))
            assert (await wait_for_state(client, job["id"]))["state"] == "succeeded"
        assert await receiver.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("work", "--only", "reeder"), "there are archive, notifier, poller, reader, submissions"),
        (("work", "--only", ""), "name at least one"),
        (("serve", "--sandbox", "--processes", "2"), "one process"),
        (("serve", "--no-workers", "--processes", "2"), "exclude each other"),
    ],
)
async def test_roles_that_make_no_sense_are_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = await receiver_command(*arguments, environment=bare_environment(), directory=tmp_path)
    assert (done.status, said in done.err, "Traceback" in done.err) == (2, True, False), done.err
