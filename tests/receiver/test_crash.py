"""
SIGKILL at any moment: what was answered 200 is there, every job comes to its right end, and is told once.

In full: RECEIVER_TEST_CRASHES=20 rounds of 2,000 callbacks, and every commit point for all providers; CI runs some.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import httpx
import pytest

from receiver.domain.tokens import Tokens
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.bench import filling
from tests.bench.load import run
from tests.support.processes import TOKEN, LiveReceiver, provider_environment
from tests.support.running_receiver import SECRET, freepik_body, signed
from tests.support.waiting import eventually, patience

ROUNDS = int(os.environ.get("RECEIVER_TEST_CRASHES", "3"))
IN_FULL = "RECEIVER_TEST_CRASHES" in os.environ
CALLBACKS = 2000 if IN_FULL else 800
KEY = "a-key-of-the-tests"
ENDS = ("job.succeeded", "job.failed", "job.expired", "job.canceled")
POINTS = 24
PROVIDERS = ("freepik", "apixo", "novita", "upscayl", "pixelcut")


class Callbacks:
    """Three callbacks for each of some running jobs: two changes of state and one end, in any order between jobs."""

    def __init__(self, database: Path, count: int, dice: random.Random) -> None:
        jobs = filling.add_running(database, count // 3)
        self.ends = {job: dice.choice(["COMPLETED", "FAILED"]) for job, _ in jobs}
        tokens = Tokens([KEY])
        self.requests: list[bytes] = []
        self.deliveries: list[tuple[str, str]] = []
        for job, task in dice.sample([pair for pair in jobs for _ in range(3)], k=3 * len(jobs)):
            said = ["CREATED", "IN_PROGRESS", self.ends[job]][sum(known == job for known, _ in self.deliveries)]
            body = freepik_body(task, said, url="http://127.0.0.1:9/result.png")
            headers = signed(body)
            self.deliveries.append((job, headers["webhook-id"]))
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            path = f"/callbacks/freepik/{tokens.callback(job, 'freepik')}"
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}content-length: {len(body)}\r\n\r\n"
            self.requests.append(head.encode() + body)

    def but(self, acknowledged: set[int]) -> tuple[list[bytes], list[int]]:
        """A callback that its sender has to send again, with its place among all of them."""
        left = [n for n in range(len(self.requests)) if n not in acknowledged]
        return [self.requests[n] for n in left], left


@pytest.mark.sqlite(reason="fills the file and reads it; tests/receiver/test_fleet.py has PostgreSQL")
@pytest.mark.slow
async def test_sigkill_under_load_loses_no_acknowledged_callback(tmp_path: Path) -> None:
    dice = random.Random(4)
    environment = {
        "RECEIVER_SECRET_KEYS": KEY,
        "FREEPIK_WEBHOOK_SECRET": SECRET,
        "RECEIVER_ALLOW_NETWORKS": "",
        "RECEIVER_POLL_INTERVAL": "3000",
    }
    receiver = LiveReceiver(tmp_path / "data", environment)
    await receiver.start()
    await receiver.stop()
    path = tmp_path / "data" / "receiver.db"
    in_time = 0
    for number in range(ROUNDS):
        sent = Callbacks(path, CALLBACKS, dice)
        await receiver.start()
        # Spread over a second, or a fast receiver would be done before it is killed.
        load = asyncio.create_task(run(receiver.port, sent.requests, 64, float(len(sent.requests))))
        await asyncio.sleep(dice.uniform(0.02, 0.5))
        in_time += not load.done()
        await receiver.kill()
        acknowledged = set((await load)["acknowledged"])
        lost = await asyncio.to_thread(missing, path, sent, acknowledged)
        assert lost == [], f"round {number}: {len(lost)} of {len(acknowledged)} acknowledged callbacks are not there"
        await receiver.start()
        requests, places = sent.but(acknowledged)
        if requests:
            again = await run(receiver.port, requests, 16, None)
            acknowledged |= {places[n] for n in again["acknowledged"]}
        assert len(acknowledged) == len(sent.requests)
        await eventually(lambda: unread(path) == 0, what=lambda: f"{unread(path)} unread")
        await receiver.stop()
        assert missing(path, sent, acknowledged) == []
        assert await asyncio.to_thread(wrong, path, sent) == []
    assert in_time > 0, "every round was over before the kill"


def missing(path: Path, sent: Callbacks, acknowledged: set[int]) -> list[str]:
    """Deliveries that were answered 200 and are not in the evidence."""
    with sqlite3.connect(path, timeout=30) as db:
        kept = {row[0] for row in db.execute("SELECT delivery_id FROM evidence WHERE source = 'callback'")}
    return [sent.deliveries[n][1] for n in acknowledged if sent.deliveries[n][1] not in kept]


def unread(path: Path) -> int:
    with sqlite3.connect(path, timeout=30) as db:
        return int(db.execute("SELECT count(*) FROM evidence WHERE read_at IS NULL").fetchone()[0])


def wrong(path: Path, sent: Callbacks) -> list[str]:
    """Jobs that did not come to their end, or were not told of exactly once."""
    with sqlite3.connect(path, timeout=30) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        states = dict(db.execute("SELECT id, state FROM jobs"))
        reported = Counter(row[0] for row in db.execute("SELECT job_id FROM events WHERE type IN (?, ?, ?, ?)", ENDS))
    right = {"COMPLETED": "succeeded", "FAILED": "failed"}
    return [job for job, end in sent.ends.items() if states[job] != right[end] or reported[job] != 1]


class DyingReceiver(LiveReceiver):
    """Kills itself at one of its commits."""

    forked = "mortal receiver"
    deaths = 0

    def die(self, when: str, commit: int) -> None:
        """From the next start on, die *when* (BEFORE or AFTER) this commit comes."""
        self.command = (str(commit), when, "serve")


@pytest.mark.sqlite(reason="dies at a commit of SQLite's connection")
@pytest.mark.slow
@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
async def test_a_death_at_each_commit_point_of_the_way_of_a_job(when: str, tmp_path: Path) -> None:
    """One life for each point; each life begins one job and takes up those of the lives before."""
    sandbox = Sandbox(seed=11, turnaround_seconds=(0.05, 0.2))
    points = range(1, POINTS + 1) if IN_FULL else range(1, POINTS + 1, 3)
    providers = PROVIDERS if IN_FULL else ("freepik", "pixelcut", "upscayl")
    async with sandbox.serve() as origin:
        wiring = provider_environment(sandbox.base_urls(origin))
        receiver = DyingReceiver(tmp_path / "data", {**wiring, "RECEIVER_CALLBACK_TIMEOUT": "1"})
        accepted: list[tuple[str, str]] = []
        for n, commit in enumerate(points):
            for provider in providers[n % len(providers) :][:1] if not IN_FULL else providers:
                receiver.die(when, commit)
                accepted += await one_life(receiver, provider, key=f"{provider}-{commit}")
        assert receiver.deaths >= len(points) * 2 // 3, "a life that does not die shows nothing"
        receiver.die(when, 10**9)
        await receiver.start()
        async with receiver.client() as client:
            wrong_jobs: list[str] = []
            await eventually(
                lambda: all_right(client, sandbox, accepted, wrong_jobs),
                what=lambda: f"{wrong_jobs}\n{receiver.log[-3000:]}",
            )
        await receiver.stop()
    with sqlite3.connect(tmp_path / "data" / "receiver.db") as db:
        reported = Counter(row[0] for row in db.execute("SELECT job_id FROM events WHERE type IN (?, ?, ?, ?)", ENDS))
        jobs = dict(db.execute("SELECT id, provider FROM jobs"))
        states = dict(db.execute("SELECT id, state FROM jobs"))
    assert {job for job, _ in accepted} <= set(jobs), "a job that was answered 202 is there"
    assert all(reported[job] == (states[job] != "unconfirmed") for job in jobs)
    tasks = Counter(task.provider for task in sandbox.accepted())
    of_jobs = Counter(jobs.values())
    assert all(tasks[provider] <= of_jobs[provider] for provider in tasks), "no job was paid twice"


async def one_life(receiver: DyingReceiver, provider: str, *, key: str) -> list[tuple[str, str]]:
    """Start, submit one job, and wait for the death; a life in which nothing is left to commit is ended."""
    await receiver.start(ready=False)
    accepted: list[tuple[str, str]] = []
    process = receiver.process
    assert process is not None
    async with httpx.AsyncClient(base_url=receiver.url, trust_env=False) as client:

        async def submitted() -> bool:
            if process.returncode is not None:
                return True
            try:
                answer = await client.post(
                    "/v1/jobs",
                    headers={"authorization": f"Bearer {TOKEN}", "idempotency-key": key},
                    data={"job": f'{{"provider": "{provider}"}}'},
                    files={"image": ("in.jpg", picture_bytes(64, 64))},
                )
            except httpx.TransportError:
                return False
            assert answer.status_code in (200, 202), answer.text
            accepted.append((answer.json()["id"], provider))
            return True

        await eventually(submitted)
        try:
            async with patience():
                await process.wait()
        except TimeoutError:
            pass
        receiver.deaths += process.returncode == -signal.SIGKILL
    await receiver.kill()
    return accepted


async def all_right(
    client: httpx.AsyncClient, sandbox: Sandbox, accepted: list[tuple[str, str]], wrong_jobs: list[str]
) -> bool:
    """
    Every job has ended as its provider says, or left without an answer and nobody can tell what became of it.

    A provider that fetches the input fails where nobody is there to give it, as it would in life.
    """
    ends = {task.id: "succeeded" if task.failure is None else "failed" for task in sandbox.accepted()}
    shown = [(await client.get(f"/v1/jobs/{job}")).json() for job, _ in accepted]
    wrong_jobs[:] = [
        str(job) for job in shown if job["state"] not in (ends.get(job["remote_id"], "succeeded"), "unconfirmed")
    ]
    return not wrong_jobs
