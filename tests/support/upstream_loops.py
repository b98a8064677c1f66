"""The submission and polling loops on a real database, under a passed clock, against providers that obey it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from receiver.domain.ids import new_id
from receiver.domain.jobs import Job
from receiver.domain.polling import Timing
from receiver.domain.tokens import Tokens
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.database import open_database
from receiver.store.jobs import JobStore
from receiver.upstream.intake import Intake
from receiver.upstream.leases import Leases
from receiver.upstream.pauses import Pauses
from receiver.upstream.poller import Poller
from receiver.upstream.rate_limits import Pace
from receiver.upstream.slots import ProviderSlot
from receiver.upstream.submissions import Submissions
from receiver.upstream.task_preparation import TaskPreparation
from submitter.client import HttpSender
from submitter.provider import Provider
from submitter.providers import PROVIDERS, build
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import State
from tests.support.clock import Clock
from tests.support.engines import database_of
from tests.support.rows import fetch


class Providers(httpx.AsyncBaseTransport):
    """
    The four that have status calls. A task ends *turnaround()* seconds after it was accepted; no callback ever leaves.

    *instead* may answer a status call in their place, *instead_of_accepting* a submit call. Nothing is answered while
    *gate* is closed; *calls* counts what came.
    """

    def __init__(self, clock: Clock, turnaround: Callable[[], float]) -> None:
        self._clock = clock
        self._turnaround = turnaround
        self.ends: dict[str, float] = {}
        self.sent_at: list[float] = []
        self.polls: dict[str, list[float]] = {}
        self.instead: Callable[[str], httpx.Response | None] = lambda task: None
        self.instead_of_accepting: Callable[[], httpx.Response | None] = lambda: None
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def late_polls(self, task: str) -> int:
        """Count the status calls after the task had ended."""
        return sum(at >= self.ends[task] for at in self.polls.get(task, ()))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        self.calls += 1
        await self.gate.wait()
        path = request.url.path
        if request.method == "POST" and not path.endswith("/get-task-status"):
            return self.instead_of_accepting() or self._accepted(path)
        if path.endswith("/get-task-status"):
            task = json.loads(body)["data"]["taskId"]
        else:
            task = request.url.params.get("taskId") or request.url.params.get("task_id") or path.rsplit("/", 1)[1]
        self.polls.setdefault(task, []).append(self._clock.seconds())
        return self.instead(task) or self._status(path, task, done=self._clock.seconds() >= self.ends[task])

    def _accepted(self, path: str) -> httpx.Response:
        task = f"task-{len(self.ends)}"
        self.ends[task] = self._clock.seconds() + self._turnaround()
        self.sent_at.append(self._clock.seconds())
        if path.endswith("/image-upscaler") and "generateTask" in path:
            return httpx.Response(200, json={"code": 200, "message": "success", "data": {"taskId": task}})
        if path.endswith("/upscale"):
            return httpx.Response(200, json={"task_id": task})
        if path.endswith("/start-task"):
            return httpx.Response(200, json={"status": "ok", "data": {"taskId": task}})
        return httpx.Response(200, json={"data": {"task_id": task, "status": "CREATED", "generated": []}})

    def _status(self, path: str, task: str, *, done: bool) -> httpx.Response:
        link = f"https://example.com/{task}.png"
        if "statusTask" in path:
            result: dict[str, Any] = {"resultJson": json.dumps({"resultUrls": [link]})} if done else {}
            data = {"taskId": task, "state": "success" if done else "processing", **result}
            return httpx.Response(200, json={"code": 200, "message": "success", "data": data})
        if "task-result" in path:
            status = "TASK_STATUS_SUCCEED" if done else "TASK_STATUS_PROCESSING"
            images = [{"image_url": link, "image_url_ttl": "3600", "image_type": "png"}] if done else []
            return httpx.Response(200, json={"task": {"task_id": task, "status": status}, "images": images})
        if path.endswith("/get-task-status"):
            files = [{"downloadLink": link}] if done else []
            data = {
                "status": "PROCESSED" if done else "PROCESSING",
                "files": files,
                "deductedCredits": 12 if done else 0,
            }
            return httpx.Response(200, json={"status": "ok", "data": data})
        state: dict[str, Any] = (
            {"status": "COMPLETED", "generated": [link]} if done else {"status": "IN_PROGRESS", "generated": []}
        )
        return httpx.Response(200, json={"data": {"task_id": task, **state}})


@dataclass
class Loops:
    """The loops under test, and their parts."""

    clock: Clock
    store: JobStore
    intake: Intake
    submissions: Submissions
    poller: Poller
    pauses: Pauses
    outside: Providers
    blobs: Blobs

    async def add(self, provider: str, count: int = 1, **options: Any) -> list[str]:
        """Queued jobs, all with one picture."""
        made = []
        for _ in range(count):
            job_id = new_id("job")
            now = self.clock()
            job = Job(job_id, provider, State.QUEUED, 1, now, options, retry_at=now, input_name="picture")
            await self.store.add_job(job)
            made.append(job_id)
        return made

    async def run(self, *, until: Callable[[], Any] = lambda: False, seconds: float = 7200) -> None:
        """Let both loops do what is due and pass the time in between, until *until* or for *seconds*."""
        ends = self.clock.now + timedelta(seconds=seconds)
        while self.clock.now < ends:
            pause = min(await self.submissions.step(), await self.poller.step())
            busy = [*self.submissions.pools.values(), *self.poller.pools.values()]
            while any(pool.busy for pool in busy):
                await asyncio.sleep(0)
            while await self.intake.read_some() < 1:
                pause = 0.0
            if until():
                return
            self.clock.now += timedelta(seconds=min(max(pause, 0.0), (ends - self.clock.now).total_seconds()))

    async def states(self) -> Counter[str]:
        return Counter(dict(await fetch(self.store.database, "SELECT state, count(*) FROM jobs GROUP BY state")))

    async def events(self) -> Counter[str]:
        return Counter(dict(await fetch(self.store.database, "SELECT type, count(*) FROM events GROUP BY type")))


@contextlib.asynccontextmanager
async def loops(
    tmp_path: Path,
    *,
    clock: Clock | None = None,
    turnaround: Callable[[], float] = lambda: 30.0,
    public_url: str | None = "https://receiver.example",
    configured: frozenset[str] = frozenset(PROVIDERS),
    paces: Mapping[str, Pace] | None = None,
    job_timeout: float = 3600.0,
    silence: float = 120.0,
) -> AsyncIterator[Loops]:
    """The loops of one process; every provider unlimited unless *paces* says otherwise."""
    clock = clock or Clock()
    outside = Providers(clock, turnaround)
    database = await open_database(database_of(tmp_path))
    blobs = Blobs(tmp_path)
    blobs.prepare()
    blobs.input_path("picture").write_bytes(picture_bytes(64, 64))
    providers: dict[str, Provider] = {name: build(name, api_key="key") for name in PROVIDERS}
    store, metrics, pauses = JobStore(database), Metrics(), Pauses(database)

    def timing_of(name: str) -> Timing:
        rhythm = providers[name].rhythm
        return Timing(
            first=rhythm.first,
            interval=rhythm.interval,
            silence=silence,
            growth=rhythm.growth,
            cap=rhythm.cap,
            lifetime=job_timeout,
            pollable=providers[name].pollable,
        )

    def unlimited() -> Pace:
        return Pace((), concurrency=16, clock=clock.seconds)

    own = dict(paces or {})
    slots = {
        name: ProviderSlot(
            provider=provider,
            pace=own.get(name) or unlimited(),
            poll_pace=unlimited(),
            configured=name in configured,
            usual=timing_of(name),
            early=timing_of(name),
        )
        for name, provider in providers.items()
    }
    intake = Intake(store, slots, blobs, metrics, confirm="unsigned", wakes=Wakes(), clock=clock)
    leases = Leases(store.leases, clock=clock)
    preparation = TaskPreparation(blobs, Tokens(["a-key-for-tests"]), lambda: public_url)
    sender = HttpSender(transport=outside)
    submissions = Submissions(intake, slots, pauses, leases, preparation, sender, metrics, clock=clock)
    poller = Poller(intake, slots, leases, sender, metrics, clock=clock)
    try:
        yield Loops(clock, store, intake, submissions, poller, pauses, outside, blobs)
    finally:
        await database.close()
