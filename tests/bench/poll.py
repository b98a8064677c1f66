"""
The cost of a tick of the poller: `python -m tests.bench poll [--open 1000,100000,1000000] [--ticks 200] [--due 100]
[--database postgresql]`.

So many polls are due among so many open jobs. A tick asks what is due and claims it, as the poller does; between ticks
what was claimed is made due again. It must be an index search, and cost at a million open jobs what it costs at a
thousand.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from receiver.store.codecs import us
from receiver.store.database import open_database
from receiver.store.leases import DUE, LEASE, JobLeases
from submitter.providers import PROVIDERS
from tests.bench.figures import Figure, parser, present
from tests.support.postgresql import PostgresqlServer, analyze, running_postgresql

_BATCH = 20_000
_CALLBACKS = ("freepik", "apixo", "novita", "upscayl")
_COLUMNS = (
    *("id", "provider", "state", "version", "options", "metadata", "remote_id", "awaits_callback", "input_name"),
    *("tries", "polls", "created_at", "sent_at", "next_poll_at", "deadline_at"),
)


def prepare(path: Path, *, open_jobs: int, due: int, now: datetime) -> list[str]:
    """Make a SQLite database of so many jobs. Returns how a claim finds what is due."""
    asyncio.run(_fill(path, open_jobs=open_jobs, due=due, now=now))
    with sqlite3.connect(path) as db:
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {DUE}", ("freepik", 1, 1, 16))]


def _prepare_on(server: PostgresqlServer, *, open_jobs: int, due: int, now: datetime) -> str:
    """Make a PostgreSQL database of so many jobs, its statistics up to date. Returns its URL."""

    async def made() -> str:
        url = await server.create()
        await _fill(url, open_jobs=open_jobs, due=due, now=now)
        await analyze(url)
        return url

    return asyncio.run(made())


async def _fill(address: Path | str, *, open_jobs: int, due: int, now: datetime) -> None:
    """*open_jobs* running jobs, of which *due* are to be polled by *now* and the others within the next hour."""
    at, hour = us(now), 3_600_000_000
    database = await open_database(address)
    for start in range(0, open_jobs, _BATCH):
        rows: list[tuple[object, ...]] = [
            (
                *(f"job_{n:026}", _CALLBACKS[n % 4], "running", 3, '{"scale":2}', "{}", f"task-{n}", True),
                *(f"job_{n:026}", 1, 0, at - hour, at - hour),
                at - n * 1000 if n < due else at + hour // 10 + (n * 7919) % hour,
                at + hour,
            )
            for n in range(start, min(start + _BATCH, open_jobs))
        ]
        await database.append("jobs", _COLUMNS, rows)
    await database.checkpoint()
    await database.close()


async def ticks(address: Path | str, *, count: int, due: int, now: datetime) -> list[float]:
    """Seconds of *count* ticks, each of which claims all that is due."""
    database = await open_database(address)
    leases = JobLeases(database)
    taken: list[float] = []
    try:
        for _ in range(count):
            began = time.perf_counter()
            firsts = await leases.first_due(list(PROVIDERS))
            limits = {name: due for name, first in firsts.items() if first <= now}
            claimed = await leases.claim_due(limits, now, owner="bench", lease=LEASE)
            jobs = [job for each in claimed.values() for job in each.jobs]
            taken.append(time.perf_counter() - began)
            if len(jobs) != due:
                raise AssertionError(f"{len(jobs)} were claimed, {due} are due")
            await leases.hand_back([job.id for job in jobs], now - timedelta(seconds=1), owner="bench")
    finally:
        await database.close()
    return taken


def main(argv: list[str]) -> None:
    options = parser("poll", __doc__)
    options.add_argument("--open", default="1000,100000,1000000")
    options.add_argument("--ticks", type=int, default=200)
    options.add_argument("--due", type=int, default=100)
    options.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    asked = options.parse_args(argv)
    figures: list[Figure] = []
    with ExitStack() as stack:
        now = datetime(2026, 11, 20, tzinfo=UTC)
        databases: dict[int, Path | str] = {}
        if asked.database == "postgresql":
            server = stack.enter_context(running_postgresql())
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="poll-")))
        for size in map(int, asked.open.split(",")):
            if asked.database == "postgresql":
                databases[size] = _prepare_on(server, open_jobs=size, due=asked.due, now=now)
            else:
                databases[size] = directory / f"{size}.db"
                prepare(directory / f"{size}.db", open_jobs=size, due=asked.due, now=now)
            baseline = figures[0].what if figures else None
            figures.append(Figure(f"a tick of the poller at {size:,} open jobs", "ms", baseline=baseline))
        for _ in range(asked.rounds):
            for figure, address in zip(figures, databases.values(), strict=True):
                taken = asyncio.run(ticks(address, count=max(asked.ticks // asked.rounds, 1), due=asked.due, now=now))
                figure.values.append(1000 * statistics.median(taken))
    present("poll", f"{asked.due} polls due, {asked.database}", figures, as_json=asked.json)
