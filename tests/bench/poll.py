"""
The cost of a tick of the poller: `python -m tests.bench poll [--open 1000,100000,1000000] [--ticks 200] [--due 100]`.

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
from datetime import UTC, datetime, timedelta
from pathlib import Path

from receiver.store.codecs import us
from receiver.store.database import open_database
from receiver.store.leases import DUE, LEASE, JobLeases
from submitter.providers import PROVIDERS
from tests.bench.figures import Figure, parser, present

_CALLBACKS = ("freepik", "apixo", "novita", "upscayl")
_COLUMNS = (
    *("id", "provider", "state", "version", "options", "metadata", "remote_id", "awaits_callback", "input_name"),
    *("tries", "polls", "created_at", "sent_at", "next_poll_at", "deadline_at"),
)


def prepare(path: Path, *, open_jobs: int, due: int, now: datetime) -> list[str]:
    """Make a database of so many jobs. Returns how a claim finds what is due."""

    async def migrated() -> None:
        await (await open_database(path)).close()

    asyncio.run(migrated())
    _fill(path, open_jobs=open_jobs, due=due, now=now)
    with sqlite3.connect(path) as db:
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {DUE}", ("freepik", 1, 1, 16))]


def _fill(path: Path, *, open_jobs: int, due: int, now: datetime) -> None:
    """*open_jobs* running jobs, of which *due* are to be polled by *now* and the others within the next hour."""
    at, hour = us(now), 3_600_000_000
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA synchronous=OFF")
        db.execute("BEGIN")
        marks = ", ".join("?" for _ in _COLUMNS)
        rows = (
            (
                *(f"job_{n:026}", _CALLBACKS[n % 4], "running", 3, '{"scale":2}', "{}", f"task-{n}", 1, f"job_{n:026}"),
                *(1, 0, at - hour, at - hour),
                at - n * 1000 if n < due else at + hour // 10 + (n * 7919) % hour,
                at + hour,
            )
            for n in range(open_jobs)
        )
        db.executemany(f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def ticks(path: Path, *, count: int, due: int, now: datetime) -> list[float]:
    """Seconds of *count* ticks, each of which claims all that is due."""
    database = await open_database(path)
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
    asked = options.parse_args(argv)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="poll-") as directory:
        now = datetime(2026, 11, 20, tzinfo=UTC)
        paths = {int(size): Path(directory) / f"{size}.db" for size in asked.open.split(",")}
        for size, path in paths.items():
            prepare(path, open_jobs=size, due=asked.due, now=now)
            baseline = figures[0].what if figures else None
            figures.append(Figure(f"a tick of the poller at {size:,} open jobs", "ms", baseline=baseline))
        for _ in range(asked.rounds):
            for figure, path in zip(figures, paths.values(), strict=True):
                taken = asyncio.run(ticks(path, count=max(asked.ticks // asked.rounds, 1), due=asked.due, now=now))
                figure.values.append(1000 * statistics.median(taken))
    present("poll", f"{asked.due} polls due", figures, as_json=asked.json)
