"""A dead link is renewed by one status call before its image is given up, and by an operator's poll after that."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.jobs import KeptImage, Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.net.client import Outbound
from receiver.net.guard import Guard
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.settling import JobUpdate
from receiver.upstream.archive import Archive
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import Image, Report, State
from tests.support.serving import serving
from tests.support.upstream_loops import Loops, loops
from tests.support.waiting import eventually

PICTURE = picture_bytes(80, 60)
RENEWABLE = ("freepik", "apixo", "novita", "upscayl")


class Host:
    """A host of results where only the links in *alive* work; the provider names *named* when it is polled."""

    def __init__(self) -> None:
        self.origin = ""
        self.alive: set[str] = set()
        self.named = "/old"
        self.fetched: list[str] = []

    async def answer(self, request: Request) -> Response:
        path = f"/{request.path_params['name']}"
        self.fetched.append(path)
        return Response(PICTURE if path in self.alive else b"no", 200 if path in self.alive else 403)


class Stage:
    """The loops, the archive beside them, and one job whose image is at the link that died."""

    def __init__(self, running: Loops, archive: Archive, host: Host) -> None:
        self.running = running
        self.archive = archive
        self.host = host
        self.polls = 0
        self.poll_status = 200
        running.outside.instead = self._polled
        self.job_id = ""

    def _polled(self, task: str) -> httpx.Response:
        self.polls += 1
        if self.poll_status != 200:
            return httpx.Response(self.poll_status, json={"message": "no"})
        images = [{"image_url": self.host.origin + self.host.named, "image_url_ttl": 600}]
        return httpx.Response(200, json={"task": {"task_id": task, "status": "TASK_STATUS_SUCCEED"}, "images": images})

    async def add(self, *, expires_in: float | None = 600, state: State = State.SUCCEEDED) -> None:
        running = self.running
        (self.job_id,) = await running.add("novita")
        now = running.clock()
        expires_at = None if expires_in is None else now + timedelta(seconds=expires_in)
        image = Image(url=f"{self.host.origin}/old", expires_at=expires_at)
        update = Update(Report("task-1", State.SUCCEEDED, (image,)), Source.RESPONSE)
        await running.store.settle([JobUpdate(self.job_id, update)], now, lambda name: Timing(1, 1, 1))

    async def pass_time(self, seconds: float) -> None:
        """Let the poller, the reader and the archive work, and pass the time in between."""
        clock = self.running.clock
        ends = clock.now + timedelta(seconds=seconds)
        while clock.now < ends:
            pause = min(await self.archive.step(), await self.running.poller.step())
            pools = [self.archive.pool, *self.running.poller.pools.values()]
            await eventually(lambda pools=pools: not any(pool.busy for pool in pools))  # type: ignore[misc]
            while await self.running.intake.read_some() < 1:
                pause = 0.0
            clock.now += timedelta(seconds=max(min(pause, (ends - clock.now).total_seconds()), 0.0))

    async def image(self) -> KeptImage:
        found = await self.running.store.job(self.job_id)
        assert found is not None
        assert found[0].state is State.SUCCEEDED
        return found[1][0]

    async def poll(self) -> bool:
        return await self.running.store.leases.poll_now(self.job_id, self.running.clock(), apart_seconds=1)


@contextlib.asynccontextmanager
async def stage(tmp_path: Path, *, renewable: tuple[str, ...] = RENEWABLE) -> AsyncIterator[Stage]:
    host = Host()
    app = Starlette(routes=[Route("/{name}", host.answer)])
    guard = Guard((ipaddress.ip_network("127.0.0.0/8"),))
    async with serving(app) as origin, loops(tmp_path, public_url=None) as running, Outbound(guard) as outbound:
        host.origin = origin
        archive = Archive(
            running.store,
            Blobs(tmp_path),
            outbound,
            Metrics(),
            wakes=Wakes(),
            renewable=renewable,
            clock=running.clock,
        )
        yield Stage(running, archive, host)


async def test_a_refused_link_is_renewed_by_one_status_call_long_before_it_would_be_given_up(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        await it.add(expires_in=None)
        it.host.named, it.host.alive = "/fresh", {"/fresh"}
        await it.pass_time(120)
        image = await it.image()
        assert (image.state, image.source_url, it.polls) == ("kept", f"{it.host.origin}/fresh", 1)
        assert it.host.fetched == ["/old", "/old", "/old", "/fresh"]
        events = await it.running.events()
        assert (events["job.images_kept"], events["job.images_lost"]) == (1, 0)


async def test_an_image_is_lost_only_after_the_provider_was_asked_for_a_fresh_link(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        await it.add(expires_in=120)
        await it.pass_time(1000)
        image = await it.image()
        assert (image.state, it.polls) == ("lost", 1)
        assert image.to_json()["lost_reason"] == "answered 403"
        assert (await it.running.events())["job.images_lost"] == 1


async def test_a_fresh_link_that_is_dead_too_ends_the_renewing(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        await it.add(expires_in=120)
        it.host.named = "/fresh"
        await it.pass_time(100_000)
        assert ((await it.image()).state, it.polls) == ("lost", 1)


@pytest.mark.parametrize("status", [404, 500])
async def test_a_status_call_that_fails_is_made_again_a_few_times(tmp_path: Path, status: int) -> None:
    async with stage(tmp_path) as it:
        it.poll_status = status
        await it.add(expires_in=60)
        await it.pass_time(4000)
        assert ((await it.image()).state, it.polls) == ("lost", 3)


async def test_where_nobody_can_be_asked_the_image_is_lost_when_its_link_dies(tmp_path: Path) -> None:
    async with stage(tmp_path, renewable=()) as it:
        await it.add(expires_in=60)
        await it.pass_time(200)
        assert ((await it.image()).state, it.polls) == ("lost", 0)


async def test_an_operators_poll_brings_a_lost_image_back(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        await it.add(expires_in=60)
        await it.pass_time(1000)
        assert (await it.image()).state == "lost"
        it.host.named, it.host.alive = "/fresh", {"/fresh"}
        assert await it.poll()
        await it.pass_time(30)
        image = await it.image()
        assert (image.state, image.to_json()["lost_reason"]) == ("kept", None)
        events = await it.running.events()
        assert (events["job.images_lost"], events["job.images_kept"], events["job.succeeded"]) == (1, 1, 1)
        assert not await it.poll(), "nothing is left to ask for"


async def test_a_job_whose_images_are_kept_is_not_polled_for_links(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        it.host.alive = {"/old"}
        await it.add()
        await it.pass_time(30)
        assert (await it.image()).state == "kept"
        assert not await it.poll()
        assert it.polls == 0


async def test_a_link_that_claims_to_be_dead_already_is_tried_all_the_same(tmp_path: Path) -> None:
    async with stage(tmp_path) as it:
        it.host.alive = {"/old"}
        await it.add(expires_in=-86400)
        await it.pass_time(30)
        assert (await it.image()).state == "kept"
