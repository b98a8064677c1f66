"""
The cost of a page when there are many jobs: `python -m tests.bench many_jobs [--jobs 1000000] [--database postgresql]`.

Two receivers, one over 1,000 jobs and one over many, answer every page and every list of the API in turn, in this
process: CPU time is counted, not the clock, so that a busy machine makes little difference. PostgreSQL's own is
counted, too. Jobs are spread over thirty days, providers and states; each has an event and a delivery.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from receiver.domain.ids import lowest_id
from receiver.domain.rollups import hour_of
from receiver.store.database import Database
from receiver.store.rollups import RollupTable
from tests.bench.filling import JOB
from tests.support.engines import ENGINE, ON_POSTGRESQL, end_server, url_of
from tests.support.pages import signed_in
from tests.support.postgresql import analyze
from tests.support.rows import fetch
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
    "/v1/jobs?limit=50",
    "/v1/jobs?limit=50&state=failed",
    "/v1/jobs?limit=50&provider=novita&since=2020-01-01",
    "/v1/jobs?limit=50&q=2026-4711",
    "/v1/jobs?limit=50&q=nothing-has-this",
    "/v1/jobs?limit=50&cursor={job}",
    "/v1/jobs/{job}",
    "/v1/jobs/{job}/evidence",
    "/v1/lost",
    "/v1/events?limit=50",
    "/v1/deliveries?limit=50",
    "/v1/deliveries?limit=50&state=given_up",
    "/v1/deliveries?job={job}",
    "/v1/providers",
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


_EVENT = ("id", "position", "type", "job_id", "provider", "created_at", "body")
_BATCH = 20_000


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench many_jobs")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    given = parser.parse_args(argv)
    if given.database != ENGINE:
        again = [sys.executable, "-m", "tests.bench", "many_jobs", *argv]
        os.execve(sys.executable, again, os.environ | {"RECEIVER_TEST_ENGINE": given.database})
    try:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(_compare(Path(directory), given.jobs))
    finally:
        end_server()


async def _compare(directory: Path, many: int) -> None:
    counts = (1_000, many)
    figures: dict[str, tuple[float, float]] = {}
    async with AsyncExitStack() as stack:
        made = []
        for count in counts:
            path = directory / str(count)
            here = await stack.enter_async_context(running_receiver(path))
            database = here.receiver.parts.database
            job = await _fill(database, count)
            if ON_POSTGRESQL:
                await analyze(url_of(path / "data"))
            await _summed(RollupTable(database))
            browser = await stack.enter_async_context(signed_in(here))
            made.append((browser, here.client, database, job))
        for page in _PAGES:
            taken: tuple[list[float], list[float]] = ([], [])
            for _ in range(_ROUNDS + 1):
                for (browser, client, database, job), into in zip(made, taken, strict=True):
                    asked = client if page.startswith("/v1") else browser
                    into.append(await _cpu_seconds(asked, page.format(job=job), await _processes(database)))
            figures[page] = (statistics.median(taken[0][1:]), statistics.median(taken[1][1:]))
    print(f"CPU time of a page, with 1,000 jobs and with {many:,}, on {ENGINE}")
    for page, (few, lots) in figures.items():
        print(f"{page:58} {1000 * few:7.1f} ms {1000 * lots:7.1f} ms  {lots / few:5.2f} times")


async def _summed(table: RollupTable) -> None:
    """Wait until all hours are summed, which takes time of this process, too."""
    while await table.newest() != hour_of(datetime.now(UTC)):
        await asyncio.sleep(0.5)


async def _processes(database: Database) -> list[str]:
    """Return the files with the CPU time of each process that PostgreSQL answers *database* with."""
    if not ON_POSTGRESQL:
        return []
    rows = await fetch(database, "SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
    return [f"/proc/{pid}/schedstat" for (pid,) in rows]


async def _cpu_seconds(client: httpx.AsyncClient, address: str, processes: list[str]) -> float:
    began = time.process_time() + _of_others(processes)
    answer = await client.get(address)
    took = time.process_time() + _of_others(processes) - began
    assert answer.status_code == 200, (address, answer.text)
    return took


def _of_others(processes: list[str]) -> float:
    return sum(int(Path(path).read_text().split()[0]) for path in processes if Path(path).exists()) / 1e9


async def _fill(database: Database, count: int) -> str:
    """Write *count* jobs; returns the newest."""
    now, newest = datetime.now(UTC), ""
    for start in range(0, count, _BATCH):
        rows = list(_rows(now, start, min(start + _BATCH, count), count))
        for table, columns, n in (("jobs", JOB, 0), ("events", _EVENT, 1), ("deliveries", _DELIVERY, 2)):
            await database.append(table, columns, [row[n] for row in rows])
        newest = str(rows[-1][0][0])
    await database.checkpoint()
    return newest


def _rows(now: datetime, start: int, end: int, count: int) -> Iterator[tuple[tuple[object, ...], ...]]:
    for n in range(start, end):
        at = now - timedelta(days=30) * ((count - n) / count)
        moment = int(at.timestamp() * 1_000_000)
        provider = ("freepik", "novita")[n % 2]
        state = "failed" if n % 50 == 0 else "canceled" if n % 101 == 0 else "succeeded"
        job = lowest_id("job", at)[:-8] + f"{n:08d}"
        moments = (moment, None, moment + 10**9, moment, moment + 40 * 10**6)
        body = json.dumps({"type": f"job.{state}", "timestamp": at.isoformat(), "data": {"id": job}})
        yield (
            (
                *(job, provider, state, 5, '{"scale_factor":"2x"}', json.dumps({"order": f"2026-{n}"})),
                *(secrets.token_hex(18), "COMPLETED", True, job, "callback", 1, 0, *moments),
            ),
            (f"evt{job[3:]}", n + 1, f"job.{state}", job, provider, moment, body),
            (
                *(f"dlv{job[3:]}", f"evt{job[3:]}", job, f"job.{state}", "https://example.com/hooks"),
                *("given_up" if n % 20 == 0 else "delivered", 1, moment, False, "ep", False),
            ),
        )
