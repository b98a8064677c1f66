"""
What a tick of the poller costs: `python -m tests.bench poll [--open 1000,100000,1000000] [--ticks 200] [--due 100]`.

So many polls are due among so many open jobs. A tick asks what is due and claims it, as the poller does; between ticks
what was claimed is made due again. It must be an index search, and cost at a million open jobs what it costs at a
thousand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from receiver.store.codecs import us
from receiver.store.database import open_database
from receiver.store.leases import DUE, LEASE, JobLeases
from submitter.providers import PROVIDERS

_CALLBACKS = ("freepik", "apixo", "novita", "upscayl")
_COLUMNS = (
    *("id", "provider", "state", "version", "options", "metadata", "remote_id", "awaits_callback", "input_name"),
    *("tries", "polls", "created_at", "sent_at", "next_poll_at", "deadline_at"),
)


def fill(path: Path, *, open_jobs: int, due: int, now: datetime) -> None:
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


def explained(path: Path) -> list[str]:
    """How the claim finds what is due."""
    with sqlite3.connect(path) as db:
        rows = db.execute(f"EXPLAIN QUERY PLAN {DUE}", ("freepik", 1, 1, 16))
        return [row[3] for row in rows]


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


def measure(*, open_jobs: int, due: int, count: int, directory: Path) -> dict[str, Any]:
    path = directory / f"{open_jobs}.db"
    now = datetime(2026, 11, 20, tzinfo=UTC)

    async def migrated() -> None:
        await (await open_database(path)).close()

    asyncio.run(migrated())
    fill(path, open_jobs=open_jobs, due=due, now=now)
    plan = explained(path)
    taken = asyncio.run(ticks(path, count=count, due=due, now=now))
    median = statistics.median(taken)
    return {"open": open_jobs, "due": due, "median_ms": round(median * 1000, 3), "plan": plan}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench poll", description=__doc__)
    parser.add_argument("--open", default="1000,100000,1000000")
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--due", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory(prefix="poll-") as directory:
        for size in asked.open.split(","):
            figures = measure(open_jobs=int(size), due=asked.due, count=asked.ticks, directory=Path(directory))
            found.append(figures)
            if not asked.json:
                told = "{open:>9} open, {due} due: median tick {median_ms} ms".format_map(figures)
                print(f"{told}; {figures['plan'][0]}")
    ratio = found[-1]["median_ms"] / found[0]["median_ms"]
    if asked.json:
        print(json.dumps({"sizes": found, "ratio": round(ratio, 2)}))
    else:
        print(f"the last is {ratio:.2f} times the first")
