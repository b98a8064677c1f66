"""
The cost of a page when there are many jobs: `python -m tests.bench many_jobs [--jobs 1000000]`.

Two receivers, one over 1,000 jobs and one over many, answer every page in turn, in this process: CPU time is counted,
not the clock, so that a busy machine makes no difference. Jobs are spread over thirty days, providers and states; each
has a delivery, and the newest have evidence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from receiver.domain.ids import lowest_id
from receiver.domain.rollups import hour_of
from receiver.store.rollups import RollupTable
from tests.bench.filling import JOB
from tests.support.pages import Browser, signed_in
from tests.support.running_receiver import running_receiver

_PAGES = (
    "/",
    "/?span=month",
    "/jobs",
    "/jobs?state=failed",
    "/jobs?provider=novita",
    "/jobs?state=succeeded&provider=freepik&since=2020-01-01",
    "/jobs?q=2026-4711",
    "/jobs?q=nothing-has-this",
    "/jobs?q=nothing-has-this&state=failed",
    "/jobs/{job}",
    "/compare?job={job}",
    "/deliveries",
    "/deliveries?state=given_up",
    "/endpoints",
    "/providers",
    "/send",
)
_ROUNDS = 15
_DELIVERY = (
    "id",
    "event_id",
    "job_id",
    "event_type",
    "url",
    "state",
    "tries",
    "created_at",
    "example",
    "lane",
    "retry",
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench many_jobs")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_compare(Path(directory), given.jobs))


async def _compare(directory: Path, many: int) -> None:
    counts = (1_000, many)
    figures: dict[str, list[float]] = {page: [] for page in _PAGES}
    async with AsyncExitStack() as stack:
        browsers = []
        for count in counts:
            path = directory / str(count)
            async with running_receiver(path) as here:
                database = here.receiver.settings.database_path
            job = await asyncio.to_thread(_fill, Path(database), count)
            here = await stack.enter_async_context(running_receiver(path))
            await _summed(RollupTable(here.receiver.parts.database))
            browsers.append((await stack.enter_async_context(signed_in(here)), job))
        for page in _PAGES:
            for browser, job in browsers:
                address = page.format(job=job)
                assert (await browser.get(address)).status_code == 200, address
                figures[page].append(statistics.median([await _cpu_seconds(browser, address) for _ in range(_ROUNDS)]))
    print(f"CPU time of a page, with 1,000 jobs and with {many:,}")
    for page, (few, lots) in figures.items():
        print(f"{page:58} {1000 * few:7.1f} ms {1000 * lots:7.1f} ms  {lots / few:5.2f} times")


async def _summed(table: RollupTable) -> None:
    """Wait until all hours are summed, which takes time of this process, too."""
    while await table.newest() != hour_of(datetime.now(UTC)):
        await asyncio.sleep(0.5)


async def _cpu_seconds(browser: Browser, address: str) -> float:
    began = time.process_time()
    await browser.get(address)
    return time.process_time() - began


def _fill(path: Path, count: int) -> str:
    """Write *count* jobs; returns the newest."""
    now = datetime.now(UTC)
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA synchronous=OFF")
        marks = {columns: ", ".join("?" * len(columns)) for columns in (JOB, _DELIVERY)}
        jobs = f"INSERT INTO jobs ({', '.join(JOB)}) VALUES ({marks[JOB]})"
        deliveries = f"INSERT INTO deliveries ({', '.join(_DELIVERY)}) VALUES ({marks[_DELIVERY]})"
        for start in range(0, count, 20_000):
            rows = list(_rows(now, start, min(start + 20_000, count), count))
            db.execute("BEGIN")
            db.executemany(jobs, [row for row, _ in rows])
            db.executemany(deliveries, [row for _, row in rows])
            db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return str(rows[-1][0][0])


def _rows(now: datetime, start: int, end: int, count: int) -> Iterator[tuple[tuple[object, ...], tuple[object, ...]]]:
    for n in range(start, end):
        at = now - timedelta(days=30) * ((count - n) / count)
        moment = int(at.timestamp() * 1_000_000)
        provider = ("freepik", "novita")[n % 2]
        state = "failed" if n % 50 == 0 else "canceled" if n % 101 == 0 else "succeeded"
        job = lowest_id("job", at)[:-8] + f"{n:08d}"
        moments = (moment, None, moment + 10**9, moment, moment + 40 * 10**6)
        yield (
            (
                *(job, provider, state, 5, '{"scale_factor":"2x"}', json.dumps({"order": f"2026-{n}"})),
                *(secrets.token_hex(18), "COMPLETED", 1, job, "callback", 1, 0, *moments),
            ),
            (
                *(f"dlv{job[3:]}", f"evt{job[3:]}", job, f"job.{state}", "https://example.com/hooks"),
                *("given_up" if n % 20 == 0 else "delivered", 1, moment, 0, "ep", 0),
            ),
        )
