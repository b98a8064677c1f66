"""Images are fetched until their link is dead; a failed download never fails a job."""

import asyncio
import contextlib
import hashlib
import ipaddress
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from receiver.domain.jobs import KeptImage, Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.net.client import DownloadCut, Outbound
from receiver.net.guard import Guard
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.leases import LEASE
from receiver.store.part_files import PartWriter
from receiver.store.settling import JobUpdate
from receiver.upstream.archive import Archive, Unfinished
from submitter.sandbox import test_picture as picture_bytes
from submitter.vocabulary import Image, Report, State
from tests.support.clock import Clock
from tests.support.pictures import chunk, png
from tests.support.rows import fetch
from tests.support.serving import serving
from tests.support.upstream_loops import Loops, loops
from tests.support.waiting import eventually

PICTURE = picture_bytes(80, 60)


@dataclass
class Links:
    """A host of results: answers with *statuses* one after the other, then with 200."""

    statuses: list[int] = field(default_factory=list)
    body: bytes = PICTURE
    fetched: int = 0
    origin: str = ""

    async def answer(self, request: Request) -> Response:
        self.fetched += 1
        status = self.statuses.pop(0) if self.statuses else 200
        return Response(self.body if status == 200 else b"no", status, media_type="image/jpeg")


@contextlib.asynccontextmanager
async def archive(tmp_path: Path, links: Links) -> AsyncIterator[tuple[Archive, Loops]]:
    app = Starlette(routes=[Route("/{name}", links.answer)])
    guard = Guard((ipaddress.ip_network("127.0.0.0/8"),))
    async with serving(app) as origin, loops(tmp_path) as running, Outbound(guard) as outbound:
        links.origin = origin
        made = Archive(running.store, Blobs(tmp_path), outbound, Metrics(), wakes=Wakes(), clock=running.clock)
        yield made, running


async def succeeded(running: Loops, *urls: str, expires_in: float = 3600) -> str:
    """A job that brought images at *urls*."""
    (job_id,) = await running.add("novita")
    now = running.clock()
    images = tuple(Image(url=url, expires_at=now + timedelta(seconds=expires_in)) for url in urls)
    update = Update(Report(f"task-of-{job_id}", State.SUCCEEDED, images), Source.RESPONSE)
    await running.store.settle([JobUpdate(job_id, update)], now, lambda name: Timing(1, 1, 1))
    return job_id


async def run(archive: Archive, clock: Clock, *, seconds: float) -> None:
    """Let the archive work and pass the time in between."""
    ends = clock.now + timedelta(seconds=seconds)
    while clock.now < ends:
        pause = await archive.step()
        await eventually(lambda: not archive.pool.busy)
        clock.now += timedelta(seconds=max(min(pause, (ends - clock.now).total_seconds()), 0.0))


async def test_refused_links_are_tried_again_until_they_work(tmp_path: Path) -> None:
    links = Links([403, 404, 500, 429])
    async with archive(tmp_path, links) as (keeper, running):
        job_id = await succeeded(running, f"{links.origin}/a")
        await run(keeper, running.clock, seconds=120)
        found = await running.store.job(job_id)
        assert found is not None
        (image,) = found[1]
        assert (image.state, image.width, image.height, image.bytes) == ("kept", 80, 60, len(PICTURE))
        assert (tmp_path / "images" / job_id / "0").read_bytes() == PICTURE
        assert links.fetched == 5
        assert (await running.events())["job.images_kept"] == 1


@pytest.mark.parametrize(("status", "tries"), [(403, 9), (410, 1)])
async def test_a_dead_link_is_reported_and_its_job_stays_succeeded(status: int, tries: int, tmp_path: Path) -> None:
    links = Links([status] * 100)
    async with archive(tmp_path, links) as (keeper, running):
        job_id = await succeeded(running, f"{links.origin}/a", expires_in=600)
        await run(keeper, running.clock, seconds=2000)
        found = await running.store.job(job_id)
        assert found is not None
        assert (found[0].state, found[1][0].state) == (State.SUCCEEDED, "lost")
        assert (await running.events())["job.images_lost"] == 1
        assert links.fetched == tries


async def test_what_is_no_image_is_not_kept(tmp_path: Path) -> None:
    links = Links(body=b"<html>not an image</html>")
    async with archive(tmp_path, links) as (keeper, running):
        job_id = await succeeded(running, f"{links.origin}/a", expires_in=100)
        await run(keeper, running.clock, seconds=2000)
        found = await running.store.job(job_id)
        assert found is not None
        assert found[1][0].state == "lost"
        assert list((tmp_path / "parts").iterdir()) == []


async def test_the_image_whose_link_dies_first_is_taken_first_and_held_until_its_lease_ends(tmp_path: Path) -> None:
    async with loops(tmp_path) as running:
        images = running.store.images
        late = await succeeded(running, "https://a.example/late", expires_in=3600)
        soon = await succeeded(running, "https://a.example/soon", expires_in=60)
        now = running.clock()
        ((first, _),) = await images.claim(now, lease=LEASE, limit=1)
        assert first.job_id == soon
        assert [image.job_id for image, _ in await images.claim(now, lease=LEASE, limit=9)] == [late]
        assert await images.next_at() == now + LEASE
        await images.renew([first], now + LEASE / 2, lease=LEASE)
        assert [image.job_id for image, _ in await images.claim(now + LEASE, lease=LEASE, limit=9)] == [late]


async def test_of_ten_thousand_that_are_due_at_once_those_whose_links_die_first_are_fetched_first(
    tmp_path: Path,
) -> None:
    links = Links()
    asked: list[str] = []

    async def note(request: Request) -> Response:
        asked.append(request.path_params["name"])
        return Response(PICTURE, media_type="image/jpeg")

    async with archive(tmp_path, links) as (made, running), serving(Starlette(routes=[Route("/{name}", note)])) as host:
        for batch in range(200):  # jobs of fifty; the later a job came, the sooner its links die
            urls = (f"{host}/{batch}-{n}" for n in range(50))
            await succeeded(running, *urls, expires_in=36_000 - 100 * batch)
        (count,) = (await fetch(running.store.database, "SELECT count(*) FROM images WHERE state = 'wanted'"))[0]
        assert count == 10_000
        while len(asked) < 60:
            await made.step()
            await asyncio.sleep(0.01)
        await made.pool.shutdown(grace_seconds=60)
        # Several downloads run at once, so the last of a job may come behind the first of the next.
        assert {f"199-{n}" for n in range(50)} <= set(asked)
        assert {name.partition("-")[0] for name in asked} == {"199", "198"}


async def test_one_of_two_images_lost_is_reported_once_both_are_decided(tmp_path: Path) -> None:
    links = Links([410])
    async with archive(tmp_path, links) as (keeper, running):
        await succeeded(running, f"{links.origin}/a", f"{links.origin}/b")
        await run(keeper, running.clock, seconds=60)
        events = await running.events()
        assert (events["job.images_lost"], events["job.images_kept"]) == (1, 0)


async def test_a_host_that_hangs_delays_only_its_own_images_and_makes_no_step_run_in_circles(tmp_path: Path) -> None:
    let_go = asyncio.Event()
    asked = 0

    async def hang(request: Request) -> Response:
        nonlocal asked
        asked += 1
        await let_go.wait()
        return Response(PICTURE, media_type="image/jpeg")

    links = Links()
    async with archive(tmp_path, links) as (made, running), serving(Starlette(routes=[Route("/{name}", hang)])) as slow:
        await succeeded(running, *(f"{slow}/{n}.jpg" for n in range(40)), expires_in=600)
        good = await succeeded(running, f"{links.origin}/good.jpg")
        pauses = [await made.step() for _ in range(6)]
        assert pauses[-1] > 0.5, "with only the full host's images left it waits to be woken"

        async def kept() -> bool:
            return bool((await images_of(running, good))[0].kept)

        await eventually(kept)
        await eventually(lambda: asked >= 1)
        assert asked <= 6
        let_go.set()

        async def all_asked() -> bool:
            await made.step()
            return asked == 40

        await eventually(all_asked)


async def images_of(running: Loops, job_id: str) -> list[KeptImage]:
    found = await running.store.job(job_id)
    assert found is not None
    return found[1]


class CuttingLinks(Links):
    """Breaks off in the middle of the first four answers (a try, and what it resumes); counts the bytes it sent."""

    def __init__(self, body: bytes, *, tags: list[str], ranges: bool = True) -> None:
        super().__init__(body=body)
        self.tags = tags
        self.ranges = ranges
        self.sent = 0

    async def answer(self, request: Request) -> Response:
        self.fetched += 1
        tag = self.tags[0] if self.fetched <= 4 else self.tags[-1]
        asked = request.headers.get("range", "") if self.ranges and request.headers.get("if-range") == tag else ""
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        end = min(start + len(self.body) // 5, len(self.body)) if self.fetched <= 4 else len(self.body)

        async def pieces() -> AsyncIterator[bytes]:
            self.sent += end - start
            yield self.body[start:end]
            if end < len(self.body):
                raise ConnectionResetError

        headers = {"etag": tag, "accept-ranges": "bytes", "content-length": str(len(self.body) - start)}
        if start:
            headers["content-range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        return StreamingResponse(pieces(), 206 if start else 200, headers=headers)


@pytest.mark.parametrize(
    ("tags", "ranges", "fetched"),
    [(['"1"'], True, 5), (['"1"', '"2"'], True, 6), (['"1"'], False, 5)],
    ids=["goes on", "another file by now", "no ranges"],
)
async def test_a_download_that_is_cut_goes_on_in_the_next_try(
    tmp_path: Path, tags: list[str], ranges: bool, fetched: int
) -> None:
    picture = png(300, 200, extra=chunk(b"teXt", os.urandom(2_000_000)))
    links = CuttingLinks(picture, tags=tags, ranges=ranges)
    async with archive(tmp_path, links) as (keeper, running):
        job_id = await succeeded(running, f"{links.origin}/a")
        await run(keeper, running.clock, seconds=60)
        found = await running.store.job(job_id)
        assert found is not None
        (image,) = found[1]
        assert (image.state, image.sha256) == ("kept", hashlib.sha256(picture).hexdigest())
        assert (tmp_path / "images" / job_id / "0").read_bytes() == picture
        assert list((tmp_path / "parts").iterdir()) == []
    assert links.fetched == fetched
    if fetched == 5 and ranges:
        assert links.sent == len(picture)  # no byte twice


async def test_cut_downloads_are_bounded_and_go_with_their_process(tmp_path: Path) -> None:
    links = CuttingLinks(png(300, 200, extra=chunk(b"teXt", os.urandom(100_000))), tags=['"1"'])
    blobs = Blobs(tmp_path / "other")
    blobs.prepare()
    unfinished = Unfinished(most=2)
    app = Starlette(routes=[Route("/{name}", links.answer)])
    guard = Guard((ipaddress.ip_network("127.0.0.0/8"),))
    async with serving(app) as origin, Outbound(guard) as outbound:
        images = [KeptImage("job_1", n, source_url=f"{origin}/{n}", expires_at=None) for n in range(3)]
        for image in images:
            links.fetched = 0
            part = PartWriter(blobs.new_part())
            with pytest.raises(DownloadCut) as cut:
                await outbound.download(f"{origin}/{image.n}", part, max_bytes=1 << 20, timeout_seconds=60)
            await unfinished.put(image, part, cut.value.arriving)
    assert len(list((tmp_path / "other" / "parts").iterdir())) == 2
    assert unfinished.take(images[0]) is None
    assert unfinished.take(replace(images[1], source_url="https://a.example/renewed")) is None
    assert unfinished.take(images[2]) is not None
    blobs.close()
    assert list((tmp_path / "other" / "parts").iterdir()) == []
