"""
Many processes on one database: the public side without keys, workers beside it, and one machine's processes.

In full: RECEIVER_TEST_PROCESSES=100000 callbacks on one SQLite file; CI sends fewer.
"""

import asyncio
import base64
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest

from receiver.store.database import open_database
from submitter import AsyncClient
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.bench.load import run
from tests.receiver.test_crash import KEY, Callbacks, missing, unread, wrong
from tests.receiver.test_spine import SETTLED_BY
from tests.support.cli import bare_environment, receiver_command
from tests.support.ports import free_port
from tests.support.processes import TOKEN, LiveReceiver, provider_environment, submit, wait_for_state
from tests.support.rows import fetch
from tests.support.running_receiver import SECRET
from tests.support.streams import Frame, read_frames, record_events
from tests.support.waiting import PATIENCE_SECONDS, eventually, patience

CALLBACKS = int(os.environ.get("RECEIVER_TEST_PROCESSES", "3000"))
AT_ONCE = 3000
NOVITA = {"provider": "novita", "image": {"base64": base64.b64encode(picture_bytes(120, 90)).decode()}}


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
        assert "no_provider_configured" not in web.log
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


async def test_before_the_first_worker_a_job_is_refused_for_now_and_a_client_gets_it_in(
    tmp_path: Path, engine: dict[str, str]
) -> None:
    async with Sandbox(seed=7, turnaround_seconds=(0.1, 0.3)).serve() as origin:
        keys = provider_environment({"novita": Sandbox.base_urls(origin)["novita"]})
        web = LiveReceiver(tmp_path / "data", engine, command=("serve", "--no-workers"))
        private = {**keys, **engine, "RECEIVER_PUBLIC_URL": web.url}
        worker = replace(web, environment=private, port=free_port(), command=("work",))
        await web.start()
        try:
            async with web.client() as plain, AsyncClient(web.url, TOKEN) as client:
                refused = await plain.post("/v1/jobs", json=NOVITA)
                assert (refused.status_code, refused.json()["code"]) == (503, "no_worker"), refused.text
                assert int(refused.headers["retry-after"]) > 0
                submitting = asyncio.create_task(client.submit("novita", picture_bytes(120, 90)))
                await worker.start()
                assert (await client.wait(await submitting)).state == "succeeded"
                refused = await plain.post("/v1/jobs", json={**NOVITA, "provider": "upscayl"})
                assert (refused.status_code, refused.json()["code"]) == (422, "provider_not_configured")
        finally:
            await asyncio.gather(web.stop(), worker.stop())


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
            now = set()
            for child in parent.children():
                with contextlib.suppress(psutil.NoSuchProcess):  # it was collected since it was listed
                    now |= {child.pid} if child.status() != psutil.STATUS_ZOMBIE else set()
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


async def test_a_client_of_the_stream_that_moves_between_processes_sees_each_event_once_in_order(
    tmp_path: Path, engine: dict[str, str]
) -> None:
    moves, events = 50, 400
    async with web_and_worker(tmp_path, engine) as (web, worker, _):
        await worker.stop()
        other = replace(web, port=free_port())
        await other.start()
        address = engine.get("RECEIVER_DATABASE_URL", tmp_path / "data" / "receiver.db")
        database = await open_database(address)
        dice = random.Random(6)
        try:

            async def write() -> None:
                written = 0
                while written < events:
                    count = min(dice.randint(1, 8), events - written)
                    await record_events(database, ["job.running"] * count)
                    written += count

            async def follow() -> list[Frame]:
                seen: list[Frame] = []
                for move in range(moves):
                    limit = events if move == moves - 1 else len(seen) + dice.randint(1, events // moves)
                    async with (web, other)[move % 2].client() as client:
                        seen += await frames(client, after=seen[-1].position if seen else 0, count=limit - len(seen))
                return seen

            seen, _ = await asyncio.gather(follow(), write())
            assert [frame.position for frame in seen] == list(range(1, events + 1))
            in_order = await fetch(database, "SELECT id FROM events ORDER BY position")
            assert [(frame.webhook_id,) for frame in seen] == in_order
        finally:
            await database.close()
            await other.stop()


async def frames(client: httpx.AsyncClient, *, after: int, count: int) -> list[Frame]:
    """The next *count* events of the stream behind the position *after*."""
    headers = {"accept": "text/event-stream", "last-event-id": str(after)}
    found: list[Frame] = []
    async with (
        patience(),
        client.stream("GET", "/v1/events", headers=headers, timeout=PATIENCE_SECONDS) as response,
        aclosing(read_frames(response)) as coming,
    ):
        async for frame in coming:
            found.append(frame)
            if len(found) == count:
                break
    return found


@pytest.mark.sqlite(reason="locks of the file")
@pytest.mark.slow
async def test_processes_on_one_sqlite_file_take_many_callbacks_without_locking_each_other_out(tmp_path: Path) -> None:
    environment = {
        "RECEIVER_SECRET_KEYS": KEY,
        "FREEPIK_WEBHOOK_SECRET": SECRET,
        "RECEIVER_ALLOW_NETWORKS": "",
        "RECEIVER_POLL_INTERVAL": "3000",
    }
    receiver = LiveReceiver(tmp_path / "data", environment, command=("serve", "--processes", "3"))
    path = tmp_path / "data" / "receiver.db"
    await receiver.start()
    rounds = []
    for start in range(0, CALLBACKS, AT_ONCE):  # a signature is good for five minutes
        sent = Callbacks(path, min(AT_ONCE, CALLBACKS - start), random.Random(4))
        done = await run(receiver.port, sent.requests, 64, None)
        assert done["statuses"] == {200: len(sent.requests)}
        rounds.append(sent)
    await eventually(lambda: unread(path) == 0, seconds=CALLBACKS / 50, what=lambda: f"{unread(path)} unread")
    await receiver.stop()
    for sent in rounds:
        assert missing(path, sent, set(range(len(sent.requests)))) == []
        assert await asyncio.to_thread(wrong, path, sent) == []
    assert "locked" not in receiver.log and "loop_failed" not in receiver.log, receiver.log[-3000:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("work", "--only", "reeder"), "use one of archive, notifier, poller, reader, submissions"),
        (("work", "--only", ""), "name at least one"),
        (("serve", "--sandbox", "--processes", "2"), "one process"),
        (("serve", "--no-workers", "--processes", "2"), "exclude each other"),
    ],
)
async def test_roles_that_make_no_sense_are_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = await receiver_command(*arguments, environment=bare_environment(), directory=tmp_path)
    assert (done.status, said in done.err, "Traceback" in done.err) == (2, True, False), done.err
