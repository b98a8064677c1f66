"""
The speed of keeping results, compared with curl.

The archive fetches *images* files of *kilobytes* each from one host, a process of its own, inspects and keeps them, on
a real database; curl downloads the same files with as many at once, in turns, median of the rounds. `order`: of so many
images due at once, the place at which the one whose link dies first was fetched. `large`: a result of 500 megapixels,
with the memory that it took beyond idle and the longest stall of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import structlog
import uvloop

from receiver.domain.ids import new_id
from receiver.domain.jobs import Job, Source
from receiver.domain.lifecycle import Update
from receiver.domain.polling import Timing
from receiver.net.client import Outbound
from receiver.net.guard import Guard
from receiver.runtime.metrics import Metrics
from receiver.runtime.wakes import Wakes
from receiver.store.blobs import Blobs
from receiver.store.database import open_database
from receiver.store.jobs import JobStore
from receiver.store.settling import JobUpdate
from receiver.upstream.archive import MOST_PER_HOST, Archive
from submitter.vocabulary import Image, Report, State
from tests.bench.figures import Figure, parser, present
from tests.support.pictures import chunk, png
from tests.support.ports import free_port

_HOST = """
import asyncio, pathlib, sys
folder = pathlib.Path(sys.argv[2])
files = {}
async def handle(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            name = head.split(b" ", 2)[1].decode().strip("/").split("?")[0].split("-")[0]
            if name not in files:
                files[name] = (folder / name).read_bytes()
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(files[name]))
            writer.write(files[name])
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[1]), backlog=512)
    await server.serve_forever()
asyncio.run(main())
"""


def main(argv: list[str]) -> None:
    options = parser("archive", __doc__)
    options.add_argument("--images", type=int, default=400, help="files in a round")
    options.add_argument("--kilobytes", type=int, default=1024, help="size of each")
    options.add_argument("--due", type=int, default=10_000, help="images due at once, for the order; 0 leaves it out")
    options.add_argument("--megapixels", type=int, default=500, help="of the large result; 0 leaves it out")
    given = vars(options.parse_args(argv))
    as_json = given.pop("json")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    conditions = f"files of {given['kilobytes']:,} kB, {MOST_PER_HOST} at once"
    present("archive", conditions, uvloop.run(measure(**given)), as_json=as_json)


async def measure(*, images: int, kilobytes: int, rounds: int, due: int, megapixels: int) -> list[Figure]:
    """All figures."""
    curls = Figure("curl", "images/s")
    ours = Figure("kept by the archive", "images/s", baseline=curls.what)
    figures = [curls, ours]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        filler = chunk(b"teXt", bytes(max(kilobytes * 1024 - 100, 0)))
        (folder / "small").write_bytes(png(1500, 1500, extra=filler))
        async with host(folder) as origin:
            for number in range(rounds):
                urls = [f"{origin}/small-{n}" for n in range(images)]
                ours.values.append(images / await kept(folder / f"data-{number}", urls))
                curls.values.append(images / await by_curl(folder / "curl", origin, images))
            if due:
                place = await place_of_first(folder / "order", due)
                figures.append(Figure(f"of {due:,} due at once, the place of the first to die", "", [place]))
            if megapixels:
                found = await large(folder, origin, megapixels)
                what = f"a result of {megapixels} megapixels"
                figures += [Figure(f"{what}, {name}", "", [value]) for name, value in found.items()]
    return figures


@contextlib.asynccontextmanager
async def host(folder: Path) -> AsyncIterator[str]:
    """A host of the files in *folder*, from memory; `/name-anything` is the file called `name`."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _HOST, str(port), str(folder))
    try:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


class Stage:
    """An archive on a database of its own."""

    def __init__(self, store: JobStore, archive: Archive) -> None:
        self.store = store
        self.archive = archive

    async def wanted(self, urls: list[str], *, dies_first: int | None = None) -> None:
        """Jobs that succeeded, a thousand images to each; the image *dies_first* has the shortest-lived link."""
        now = datetime.now(UTC)
        for start in range(0, len(urls), 50):
            job = Job(new_id("job"), "freepik", State.QUEUED, 1, now, retry_at=now + timedelta(days=1))
            await self.store.add_job(job)
            images = tuple(
                Image(url=url, expires_at=now + timedelta(hours=1 if start + n == dies_first else 2))
                for n, url in enumerate(urls[start : start + 50])
            )
            update = Update(Report(job.id, State.SUCCEEDED, images), Source.RESPONSE)
            await self.store.settle([JobUpdate(job.id, update)], now, lambda _: Timing(1, 1, 1))

    async def run(self) -> None:
        """Until nothing is wanted."""
        loops = asyncio.gather(self.archive.loop.run(), self.archive.renewals.run())
        try:
            while await self.store.images.next_at() is not None:
                await asyncio.sleep(0.02)
        finally:
            loops.cancel()
            await asyncio.gather(loops, return_exceptions=True)
            await self.archive.pool.shutdown(grace_seconds=5)


@contextlib.asynccontextmanager
async def stage(data_dir: Path) -> AsyncIterator[Stage]:
    data_dir.mkdir()
    blobs = Blobs(data_dir)
    blobs.prepare()
    database = await open_database(data_dir / "receiver.db")
    try:
        async with Outbound(Guard((ipaddress.ip_network("127.0.0.0/8"),))) as outbound:
            store = JobStore(database)
            yield Stage(store, Archive(store, blobs, outbound, Metrics(), wakes=Wakes()))
    finally:
        await database.close()
        blobs.close()


async def kept(data_dir: Path, urls: list[str]) -> float:
    """Seconds until all of *urls* are kept."""
    async with stage(data_dir) as it:
        await it.wanted(urls)
        began = time.perf_counter()
        await it.run()
        took = time.perf_counter() - began
    files = sum(path.is_file() for path in (data_dir / "images").rglob("*"))
    if files != len(urls):
        raise SystemExit(f"{files} of {len(urls)} were kept")
    shutil.rmtree(data_dir)
    return took


async def by_curl(folder: Path, origin: str, count: int) -> float:
    """Seconds that curl takes for the same files, as many at once."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(
            "curl",
            "-s",
            "-S",
            "--no-progress-meter",
            "--fail",
            "--parallel",
            "--parallel-max",
            str(MOST_PER_HOST),
            "--create-dirs",
        ),
        *("-o", f"{folder}/#1", f"{origin}/small-[0-{count - 1}]"),
    )
    if await process.wait() != 0:
        raise SystemExit("curl failed")
    took = time.perf_counter() - began
    shutil.rmtree(folder)
    return took


async def place_of_first(data_dir: Path, count: int) -> int:
    """Of *count* images due at once, when the one whose link dies first was claimed, counted from 1."""
    async with stage(data_dir) as it:
        urls = [f"https://host-{n}.example/{n}" for n in range(count)]
        await it.wanted(urls, dies_first=count - 7)
        claimed = await it.store.images.claim(datetime.now(UTC), lease=timedelta(seconds=10), limit=16)
        places = [image.source_url for image, _ in claimed]
        return places.index(urls[count - 7]) + 1


async def large(folder: Path, origin: str, megapixels: int) -> dict[str, Any]:
    """Keep one huge result, watching memory and the loop."""
    side = int((megapixels * 1e6) ** 0.5)
    packer, line = zlib.compressobj(1), b"\0" + bytes((side + 7) // 8)
    data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    filler = chunk(b"teXt", bytes(200 << 20))  # few real results compress as well as a blank one
    whole = b"\x89PNG\r\n\x1a\n" + header + filler + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (folder / "large").write_bytes(whole)
    size = len(whole)
    del whole, data, filler
    process, stalls, peak = psutil.Process(), [0.0], 0
    async with stage(folder / "large-data") as it:
        await it.wanted([f"{origin}/large-0"])
        idle = process.memory_info().rss
        watching = True

        async def watch() -> None:
            nonlocal peak
            while watching:
                began = time.perf_counter()
                await asyncio.sleep(0.005)
                stalls.append(time.perf_counter() - began - 0.005)
                peak = max(peak, process.memory_info().rss)

        watcher = asyncio.create_task(watch())
        await it.run()
        watching = False
        await watcher
    return {
        "megabytes": round(size / 2**20, 1),
        "memory_beyond_idle_mb": round((peak - idle) / 2**20, 1),
        "longest_stall_ms": round(max(stalls) * 1000, 1),
    }
