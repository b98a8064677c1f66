"""
Three web and two worker processes on one PostgreSQL, each killed in turn under load, the server restarted once.

In full: RECEIVER_TEST_FLEET=5000 jobs; CI runs fewer.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from receiver.domain.tokens import job_of_callback_url
from receiver.store.database import Database, open_database
from submitter.provider_settings import Rate
from submitter.sandbox import Sandbox
from submitter.sandbox import test_picture as picture_bytes
from tests.support.balancer import Balancer
from tests.support.cli import receiver_command
from tests.support.ports import free_port
from tests.support.postgresql import PostgresqlServer, running_postgresql
from tests.support.processes import TOKEN, LiveReceiver, provider_environment
from tests.support.rows import fetch
from tests.support.subscriber import Subscriber
from tests.support.waiting import eventually

JOBS = int(os.environ.get("RECEIVER_TEST_FLEET", "60"))
PROVIDERS = ("freepik", "apixo", "novita")
RATE = Rate(20, 1)
KILLED_WITHIN_SECONDS = (0.3, 1.5 + JOBS / 500)
PATIENCE_SECONDS = 120.0 + JOBS
TERMINAL = ("job.succeeded", "job.failed", "job.expired", "job.canceled")


@dataclass
class Fleet:
    """Processes on one database behind one address, and what stands around them."""

    url: str
    web: Sequence[LiveReceiver]
    workers: Sequence[LiveReceiver]
    balancer: Balancer
    sandbox: Sandbox
    subscriber: Subscriber

    @property
    def processes(self) -> list[LiveReceiver]:
        return [*self.web, *self.workers]


@asynccontextmanager
async def fleet(tmp_path: Path, database_url: str, *, web: int, workers: int) -> AsyncIterator[Fleet]:
    sandbox, subscriber = Sandbox(seed=5, turnaround_seconds=(0.1, 1.0), retry_scale=0.1), Subscriber()
    ports = [free_port() for _ in range(web)]
    balancer = Balancer([f"http://127.0.0.1:{port}" for port in ports])
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(sandbox.serve())
        await stack.enter_async_context(subscriber.serve())
        url = await stack.enter_async_context(balancer.serve())
        keys = provider_environment(Sandbox.base_urls(origin))
        shared = {
            "RECEIVER_DATABASE_URL": database_url,
            "RECEIVER_SECRET_KEYS": "a-key-that-all-processes-share",
            "RECEIVER_PUBLIC_URL": url,
            "RECEIVER_CALLBACK_TIMEOUT": "5",
            "RECEIVER_RETRY_SCHEDULE": "0,0.2,0.5,1,2,5,5,5,5,5,5",
            **{f"{name.upper()}_RATE": str(RATE) for name in PROVIDERS},
        }
        public = {name: value for name, value in keys.items() if not name.endswith("_API_KEY")}
        first = LiveReceiver(tmp_path / "data", {**shared, **public}, port=ports[0], command=("serve", "--no-workers"))
        done = await receiver_command("migrate", environment=first.full_environment(), directory=tmp_path)
        assert done.status == 0, done.err
        made = Fleet(
            url,
            [replace(first, port=port) for port in ports],
            [
                replace(first, environment={**shared, **keys}, command=("work",), port=free_port())
                for _ in range(workers)
            ],
            balancer,
            sandbox,
            subscriber,
        )
        try:
            for process in (*made.workers, *made.web):  # which provider has a key is known once a worker ran
                await process.start()
            yield made
        finally:
            await asyncio.gather(*(process.stop() for process in made.processes))


@pytest.mark.slow
async def test_every_process_dies_in_turn_and_the_database_once_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    dice = random.Random(8)
    with running_postgresql() as server:
        if not server.can_restart:
            pytest.skip("the tests restart only a server of their own; unset RECEIVER_TEST_POSTGRESQL_URL")
        async with (
            server.database() as database_url,
            fleet(tmp_path, database_url, web=3, workers=2) as made,
            httpx.AsyncClient(
                base_url=made.url, headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=60
            ) as client,
        ):
            hook = await client.post("/v1/endpoints", json={"url": f"{made.subscriber.origin}/hook"})
            assert hook.status_code == 201, hook.text
            began_at = datetime.now(UTC)
            posting = asyncio.create_task(post_jobs(client, JOBS))
            await kill_in_turn(made, server, dice)
            posted = await posting
            database = await open_database(database_url)
            try:
                await eventually(
                    lambda: settled(database, made, posted), seconds=PATIENCE_SECONDS, what=lambda: left_over(made)
                )
                await assert_nothing_is_lost_or_doubled(database, made, posted)
            finally:
                await database.close()
            assert_rates_held(made.sandbox, began_at)


async def post_jobs(client: httpx.AsyncClient, count: int) -> dict[str, str]:
    """Post *count* jobs over the providers, each with a key until it is accepted; returns the provider of each job."""
    picture, places = picture_bytes(64, 64), asyncio.Semaphore(8)

    async def post(number: int) -> tuple[str, str]:
        provider = PROVIDERS[number % len(PROVIDERS)]
        async with places:
            while True:
                try:
                    answer = await client.post(
                        "/v1/jobs",
                        headers={"idempotency-key": f"job-{number}"},
                        data={"job": f'{{"provider": "{provider}"}}'},
                        files={"image": ("in.jpg", picture)},
                    )
                except httpx.TransportError:  # a kept connection that was just closed
                    await asyncio.sleep(0.2)
                    continue
                if answer.status_code in (200, 202):
                    return answer.json()["id"], provider
                assert answer.status_code in (429, 502, 503), answer.text
                await asyncio.sleep(0.2)

    return dict(await asyncio.gather(*(post(number) for number in range(count))))


async def kill_in_turn(made: Fleet, server: PostgresqlServer, dice: random.Random) -> None:
    """SIGKILL each process while jobs are under way, and start it again; halfway, restart the database."""
    for number, process in enumerate(made.processes):
        await asyncio.sleep(dice.uniform(*KILLED_WITHIN_SECONDS))
        await process.kill()
        if number == 2:
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
        await process.start()


async def settled(database: Database, made: Fleet, posted: dict[str, str]) -> bool:
    """Return whether every job has ended, and its images and deliveries too."""
    known = heard_of(made)
    states = dict(await fetch(database, "SELECT id, state FROM jobs"))
    ended = [states[job] in ("succeeded", "failed") or ends_unconfirmed(job, states[job], known) for job in posted]
    rest = [
        "SELECT count(*) FROM evidence WHERE read_at IS NULL",
        "SELECT count(*) FROM images WHERE state = 'wanted'",
        "SELECT count(*) FROM deliveries WHERE state = 'pending'",
        "SELECT count(*) FROM events WHERE position IS NULL AND example = 0",
    ]
    return all(ended) and all([await fetch(database, query) == [(0,)] for query in rest])


def heard_of(made: Fleet) -> set[str]:
    """Jobs that some callback was acknowledged for."""
    return {str(job_of_callback_url(made.url + path)) for path, _ in made.balancer.acknowledged}


def ends_unconfirmed(job: str, state: str, known: set[str]) -> bool:
    """
    Return whether the outcome of *job* can't be known.

    Its holder died while it was being sent, and no callback came: the call never arrived, or its only callback met a
    process that was being killed.
    """
    return state == "unconfirmed" and job not in known


def left_over(made: Fleet) -> str:
    return made.web[0].log[-3000:]


async def assert_nothing_is_lost_or_doubled(database: Database, made: Fleet, posted: dict[str, str]) -> None:
    jobs = {row[0]: row[1:] for row in await fetch(database, "SELECT id, provider, state FROM jobs")}
    assert {job: provider for job, (provider, _) in jobs.items()} == posted, "a key makes one job"
    paid = Counter(job_of(task) for task in made.sandbox.accepted())
    assert max(paid.values()) == 1, "no job is paid twice"
    assert set(paid) <= set(posted)
    known = heard_of(made)
    ended = [job for job, (_, state) in jobs.items() if state != "unconfirmed"]
    # A provider that fetches the input fails where no process is there to serve it.
    failed = {job_of(task) for task in made.sandbox.accepted() if task.failure is not None}
    for job, (_, state) in jobs.items():
        right = job in paid and state == ("failed" if job in failed else "succeeded")
        assert right or ends_unconfirmed(job, state, known), (job, state)
    ends = Counter(
        row[0] for row in await fetch(database, "SELECT job_id FROM events WHERE type IN (??)", list(TERMINAL))
    )
    assert ends == Counter(ended), "each job's end is one event"
    kept = Counter(
        (row[0], sha256(bytes(row[1])).hexdigest())
        for row in await fetch(database, "SELECT job_id, body FROM evidence WHERE source = 'callback'")
    )
    answered = Counter((job_of_callback_url(made.url + path), body) for path, body in made.balancer.acknowledged)
    assert not answered - kept, "each acknowledged callback is recorded"
    events = {row[0] for row in await fetch(database, "SELECT id FROM events WHERE example = 0")}
    assert {seen.id for seen in made.subscriber.seen} == events, "each event is delivered"
    unconfirmed = len(posted) - len(ended)
    print(f"{len(ended)} ended ({len(failed)} failed), {unconfirmed} unconfirmed, {len(events)} events,")
    print(f"{answered.total()} callbacks acknowledged, {sum(kept.values())} kept")
    positions = [row[0] for row in await fetch(database, "SELECT position FROM events ORDER BY position")]
    assert positions == list(range(1, len(positions) + 1)), "positions have no gap"


def assert_rates_held(sandbox: Sandbox, began_at: datetime) -> None:
    for provider in PROVIDERS:
        for number, task in enumerate(sandbox.accepted(provider), 1):
            passed = (task.accepted_at - began_at).total_seconds()
            assert number <= RATE.count + passed * RATE.count / RATE.seconds + 1, (provider, number, passed)


def job_of(task: Any) -> str:
    job = job_of_callback_url(task.order.callback_url)
    assert job is not None
    return job
